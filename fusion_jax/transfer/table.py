"""All divergences by name."""

from fusion_jax.transfer import moments, sample_divergences, term_divergences
from fusion_jax.transfer.measure import Measure

MEASURES: dict[str, Measure] = {
    **term_divergences.RECORDS,
    **moments.RECORDS,
    **sample_divergences.RECORDS,
}
"""Name -> measure; add a divergence by a record in its file."""
