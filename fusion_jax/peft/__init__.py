"""Parameter-efficient modules: small trees of leaves beside a frozen host."""

from fusion_jax.peft.attach import attach
from fusion_jax.peft.config import PeftConfig
from fusion_jax.peft.delta import delta
from fusion_jax.peft.module import (
    Module,
    host_leaves,
    init_module,
    merge_into,
    module_leaves,
    with_module,
)
from fusion_jax.peft.portable import flat_prefix, portable, residual_host
from fusion_jax.peft.table import KINDS, Kind

__all__ = [
    "KINDS",
    "Kind",
    "Module",
    "PeftConfig",
    "attach",
    "delta",
    "flat_prefix",
    "host_leaves",
    "init_module",
    "merge_into",
    "module_leaves",
    "portable",
    "residual_host",
    "with_module",
]
