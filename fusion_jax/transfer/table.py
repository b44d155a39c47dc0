"""All divergences by name."""

from fusion_jax.transfer import (
    domain_classifier,
    modules,
    moments,
    sample_divergences,
    term_divergences,
    transport,
)
from fusion_jax.transfer.measure import Measure

MEASURES: dict[str, Measure] = {
    **term_divergences.RECORDS,
    **moments.RECORDS,
    **sample_divergences.RECORDS,
    **transport.RECORDS,
    **domain_classifier.RECORDS,
    **modules.RECORDS,
}
"""Name -> measure; add a divergence by a record in its file."""
