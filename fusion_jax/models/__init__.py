"""Encoders with task heads in Flax Linen; the only home of flax."""

from fusion_jax.models.build import build_model
from fusion_jax.models.config import EncoderConfig
from fusion_jax.models.heads import HEADS
from fusion_jax.models.partition import PARTITION_RULES

__all__ = ["HEADS", "PARTITION_RULES", "EncoderConfig", "build_model"]
