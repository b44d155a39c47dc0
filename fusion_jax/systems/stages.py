"""A stage's options in a run's config, as the fit that they describe."""

from fusion_jax.config import Config
from fusion_jax.training.config import FitConfig


def stage_config(options: Config, config: Config, seed: int) -> FitConfig:
    """A stage's options with the seed and dtype of the run.

    Args:
      options: fields of `FitConfig`.
      config: of the run.
      seed: of the order of rows and of dropout.
    """
    return FitConfig(**{**options.to_dict(), "seed": seed, "dtype": config.dtype})
