"""A module taken apart: its own leaves, those of the host, its low-rank updates."""

import math
import re

import jax.numpy as jnp
import numpy as np

from fusion_jax import trees
from fusion_jax.peft.delta import delta, scaling
from fusion_jax.peft.factors import Factors, of_dense
from fusion_jax.peft.gates import ungated
from fusion_jax.peft.lora import parts
from fusion_jax.peft.module import Module
from fusion_jax.peft.table import KINDS
from fusion_jax.types import Params


def own_leaves(module: Module) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(leaves of its kind, leaves that stand for the host's own), by name."""
    owns = re.compile(KINDS[module.config.kind].owns)
    own, rest = {}, {}
    for name, leaf in trees.flatten(module.params).items():
        (own if owns.fullmatch(name) else rest)[name] = np.asarray(leaf)
    return own, rest


def updates_of(module: Module, host: Params | None = None) -> dict[str, Factors]:
    """What a module of kind lora adds to each kernel.

    The scaling is split evenly: sqrt(s) a and sqrt(s) b; a gate is multiplied into a.

    Args:
      module: of kind lora.
      host: read by DoRA alone, whose update of a kernel has any rank.

    Returns:
      Layer path -> factors, float64.

    Raises:
      ValueError: DoRA without the kernels of its layers; all are listed.
    """
    module = ungated(module)
    found, lacking = {}, []
    kernels = trees.flatten(host) if host is not None else {}
    for path, leaves in parts(module.params).items():
        if "magnitude" not in leaves:
            a, b = (np.asarray(leaves[part], np.float64) for part in ("a", "b"))
            root = math.sqrt(scaling(module.config, path, a.shape[1]))
            found[path] = Factors(root * a, root * b)
        elif f"{path}/kernel" in kernels:
            kernel = jnp.asarray(kernels[f"{path}/kernel"])
            dense = delta(module.config, path, leaves, kernel)
            found[path] = of_dense(np.asarray(dense, np.float64))
        else:
            lacking.append(path)
    if lacking:
        raise ValueError(f"DoRA needs the host's kernels of {', '.join(lacking)}")
    return found
