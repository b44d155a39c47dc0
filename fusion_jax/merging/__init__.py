"""Merges: pure functions from a stack of experts and coefficients to one model."""

from fusion_jax.merging.arcee_fusion import arcee_fusion
from fusion_jax.merging.breadcrumbs import breadcrumbs, breadcrumbs_ties
from fusion_jax.merging.consensus import TallMasks, consensus, tall_masks, tall_model
from fusion_jax.merging.dare import dare, dare_ties
from fusion_jax.merging.della import della, della_linear
from fusion_jax.merging.emr import EMR, emr, emr_model
from fusion_jax.merging.fisher import fisher
from fusion_jax.merging.isotropic import iso_c, iso_cts
from fusion_jax.merging.knots import knots
from fusion_jax.merging.linear import task_arithmetic, weighted_average, wise_ft
from fusion_jax.merging.lines import lines
from fusion_jax.merging.mats import mats
from fusion_jax.merging.model_stock import model_stock
from fusion_jax.merging.nearswap import nearswap
from fusion_jax.merging.pcb import pcb
from fusion_jax.merging.ram import ram, ram_plus
from fusion_jax.merging.rebasin import git_rebasin
from fusion_jax.merging.record import Merge
from fusion_jax.merging.regmean import regmean
from fusion_jax.merging.robust import coordinate_median, norm_clipped_mean, trimmed_mean
from fusion_jax.merging.robust_distances import geometric_median, krum
from fusion_jax.merging.sce import sce
from fusion_jax.merging.spherical import nuslerp, slerp
from fusion_jax.merging.spherical_means import karcher, multislerp
from fusion_jax.merging.table import MERGES
from fusion_jax.merging.ties import ties
from fusion_jax.merging.tsv import tsv_m
from fusion_jax.merging.wudi import wudi

__all__ = [
    "EMR",
    "MERGES",
    "Merge",
    "TallMasks",
    "arcee_fusion",
    "breadcrumbs",
    "breadcrumbs_ties",
    "consensus",
    "coordinate_median",
    "dare",
    "dare_ties",
    "della",
    "della_linear",
    "emr",
    "emr_model",
    "fisher",
    "geometric_median",
    "git_rebasin",
    "iso_c",
    "iso_cts",
    "karcher",
    "knots",
    "krum",
    "lines",
    "mats",
    "model_stock",
    "multislerp",
    "nearswap",
    "norm_clipped_mean",
    "nuslerp",
    "pcb",
    "ram",
    "ram_plus",
    "regmean",
    "sce",
    "slerp",
    "tall_masks",
    "tall_model",
    "task_arithmetic",
    "ties",
    "trimmed_mean",
    "tsv_m",
    "weighted_average",
    "wise_ft",
    "wudi",
]
