"""Merges: pure functions from a stack of experts and coefficients to one model."""

from fusion_jax.merging.linear import task_arithmetic, weighted_average, wise_ft
from fusion_jax.merging.record import Merge
from fusion_jax.merging.table import MERGES
from fusion_jax.merging.ties import ties

__all__ = [
    "MERGES",
    "Merge",
    "task_arithmetic",
    "ties",
    "weighted_average",
    "wise_ft",
]
