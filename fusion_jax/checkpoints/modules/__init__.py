"""Modules in files: our own form, Hugging Face peft's and AdapterHub's."""

from fusion_jax.checkpoints.modules.host import Host, check_host, host_of
from fusion_jax.checkpoints.modules.peft_read import module_of_tensors
from fusion_jax.checkpoints.modules.table import (
    FORMS,
    form_of,
    load_module,
    save_module,
)

__all__ = [
    "FORMS",
    "Host",
    "check_host",
    "form_of",
    "host_of",
    "load_module",
    "module_of_tensors",
    "save_module",
]
