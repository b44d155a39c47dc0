"""Knowledge transfer in weight space: merges as pure functions over pytrees."""

from fusion_jax.merging import (
    MERGES,
    Merge,
    task_arithmetic,
    weighted_average,
    wise_ft,
)
from fusion_jax.trees import stack, unstack
from fusion_jax.version import __version__

__all__ = [
    "MERGES",
    "Merge",
    "__version__",
    "stack",
    "task_arithmetic",
    "unstack",
    "weighted_average",
    "wise_ft",
]
