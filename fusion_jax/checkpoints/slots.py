"""Shapes and dtypes of the output, known from the headers of the sources."""

from collections.abc import Mapping

import numpy as np

from fusion_jax.checkpoints.lazy import DTYPES, LazyCheckpoint
from fusion_jax.checkpoints.output import Slot
from fusion_jax.checkpoints.pieces import common_dtype
from fusion_jax.checkpoints.plan import MergePlan, TensorPlan
from fusion_jax.checkpoints.tensors import CheckpointError


def slot_of(
    tensor: TensorPlan,
    plan: MergePlan,
    models: Mapping[str, LazyCheckpoint],
    shapes: Mapping[str, tuple[int, ...]],
) -> Slot:
    """Shape and dtype of a tensor of the output, from the headers of its sources."""
    infos = [models[s.model].tensors[s.tensor] for s in tensor.sources]
    shape = shapes.get(tensor.name, infos[0].shape)
    if not infos[0].floating:
        return Slot(tensor.name, shape, infos[0].dtype)
    if tensor.method != "copy" and infos[0].size >= 2**31:
        raise CheckpointError(
            f"{tensor.name}: {infos[0].size} elements; tensors of 2^31 and more cannot "
            "be merged, split it into several"
        )
    wanted = plan.out_dtype or plan.dtype
    if wanted:
        return Slot(tensor.name, shape, floating_dtype(wanted))
    return Slot(tensor.name, shape, common_dtype([info.dtype for info in infos]))


def floating_dtype(name: str) -> np.dtype:
    """The dtype of a name; a CheckpointError if tensors cannot be merged to it."""
    known = {str(dtype): dtype for dtype in DTYPES.values() if dtype.kind not in "iub"}
    if name not in known:
        raise CheckpointError(
            f"dtype '{name}' is not one of {', '.join(sorted(known))}"
        )
    return known[name]
