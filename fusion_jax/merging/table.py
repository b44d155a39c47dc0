"""The table of merges: tests sweep it, commands look names up in it.

A new method is a file with its function, form and `RECORDS`, and two lines here.
"""

from fusion_jax.merging.arcee_fusion import RECORDS as ARCEE_FUSION
from fusion_jax.merging.breadcrumbs import RECORDS as BREADCRUMBS
from fusion_jax.merging.consensus import RECORDS as CONSENSUS
from fusion_jax.merging.dare import RECORDS as DARE
from fusion_jax.merging.della import RECORDS as DELLA
from fusion_jax.merging.emr import RECORDS as EMR
from fusion_jax.merging.fisher import RECORDS as FISHER
from fusion_jax.merging.isotropic import RECORDS as ISOTROPIC
from fusion_jax.merging.knots import RECORDS as KNOTS
from fusion_jax.merging.linear import RECORDS as LINEAR
from fusion_jax.merging.lines import RECORDS as LINES
from fusion_jax.merging.mats import RECORDS as MATS
from fusion_jax.merging.model_stock import RECORDS as MODEL_STOCK
from fusion_jax.merging.nearswap import RECORDS as NEARSWAP
from fusion_jax.merging.pcb import RECORDS as PCB
from fusion_jax.merging.ram import RECORDS as RAM
from fusion_jax.merging.rebasin import RECORDS as REBASIN
from fusion_jax.merging.record import Merge
from fusion_jax.merging.regmean import RECORDS as REGMEAN
from fusion_jax.merging.robust import RECORDS as ROBUST
from fusion_jax.merging.robust_distances import RECORDS as ROBUST_DISTANCES
from fusion_jax.merging.sce import RECORDS as SCE
from fusion_jax.merging.spherical import RECORDS as SPHERICAL
from fusion_jax.merging.spherical_means import RECORDS as SPHERICAL_MEANS
from fusion_jax.merging.ties import RECORDS as TIES
from fusion_jax.merging.tsv import RECORDS as TSV
from fusion_jax.merging.wudi import RECORDS as WUDI

MERGES: dict[str, Merge] = {
    **ARCEE_FUSION,
    **BREADCRUMBS,
    **CONSENSUS,
    **DARE,
    **DELLA,
    **EMR,
    **FISHER,
    **ISOTROPIC,
    **KNOTS,
    **LINEAR,
    **LINES,
    **MATS,
    **MODEL_STOCK,
    **NEARSWAP,
    **PCB,
    **RAM,
    **REBASIN,
    **REGMEAN,
    **ROBUST,
    **ROBUST_DISTANCES,
    **SCE,
    **SPHERICAL,
    **SPHERICAL_MEANS,
    **TIES,
    **TSV,
    **WUDI,
}
