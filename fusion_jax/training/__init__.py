"""Fine-tuning: one fit() for one expert or a stack of experts."""

from fusion_jax.training.config import FitConfig
from fusion_jax.training.fit import FitResult, fit, fit_stack
from fusion_jax.training.loop import Diverged
from fusion_jax.training.sharding import make_mesh

__all__ = ["Diverged", "FitConfig", "FitResult", "fit", "fit_stack", "make_mesh"]
