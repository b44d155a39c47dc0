"""How many experts train together in one program, by device and memory."""

import logging
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from fusion_jax.processes import least
from fusion_jax.training.config import FitConfig
from fusion_jax.training.sharding import has_rows
from fusion_jax.trees import combine, num_bytes
from fusion_jax.types import Batch, Model, Params

logger = logging.getLogger(__name__)

# Share of the free memory that a stack may fill: the estimate of the activations is
# of the traced program, before XLA fuses and reuses.
_FILL = 0.8


def choose_width(
    experts: int,
    bytes_per_expert: Callable[[], int],
    bytes_shared: int,
    mesh: Mesh,
) -> int:
    """Experts a program: all on an accelerator if they fit, one by one on a CPU.

    A mesh with an axis 'expert' gets a multiple of its size in any case.

    Args:
      experts: K.
      bytes_per_expert: gives what `estimate_bytes` says; asked only where it counts.
      bytes_shared: of the leaves that all experts share.
      mesh: mesh of `make_mesh`.

    Returns:
      The width, at most K.

    Raises:
      ValueError: K experts cannot be spread evenly over the axis 'expert'.
    """
    ways = mesh.shape["expert"]
    if experts % ways:
        raise ValueError(
            f"{experts} experts cannot be spread evenly over the mesh axis expert="
            f"{ways}; choose a divisor of {experts}"
        )
    if experts == 1:
        return 1
    # What one process has free, another may not; a group is of one width in all.
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        # On 2 cores vmap over 4 MiniLM experts took 0.93 to 1.08 of the time of one
        # after another (batches of 16 x 32 and 16 x 64), lax.map over them 0.97 to
        # 1.0: together nothing is gained that would pay for K states in memory, for
        # padding to the longest of K batches and for experts that stop early.
        return ways
    limit = _free_bytes(device)
    if limit is None:
        return experts
    limit = least(limit)
    each = bytes_per_expert()
    width = fitting_width(experts, int((_FILL * limit - bytes_shared) / each), ways)
    logger.info(
        "%d experts, %d at a time: about %.0f MiB each and %.0f MiB shared, of %.0f "
        "MiB that are free",
        experts,
        width,
        each / 2**20,
        bytes_shared / 2**20,
        limit / 2**20,
    )
    return width


def fitting_width(experts: int, room: int, ways: int) -> int:
    """The largest group of which there is a whole number and which fits.

    Groups are equal, so that one program serves them all.

    Args:
      experts: K.
      room: experts that a device has room for.
      ways: devices that the experts are spread over; divides K.
    """
    width = min(max(room, 1) * ways, experts)
    while experts % width or width % ways:
        width -= 1
    return width


def estimate_bytes(
    model: Model,
    params: Params,
    fixed: Params,
    batch: Batch,
    config: FitConfig,
) -> int:
    """Bytes that one expert takes in training.

    Parameters, gradient, two moments, the best and the average; and what the backward
    pass keeps of the forward pass, from the shapes of its residuals.

    Args:
      model: the model.
      params: trained leaves of one expert.
      fixed: its other leaves.
      batch: the longest batch, or its shapes.
      config: accumulation and averaging.
    """
    copies = 5 + (config.average != "none")
    rows = {
        name: x
        if not has_rows(name, x)
        else jax.ShapeDtypeStruct(
            (max(x.shape[0] // config.accumulate, 1), *x.shape[1:]), x.dtype
        )
        for name, x in batch.items()
    }

    def residuals(params: Params, fixed: Params, rows: Any) -> Any:
        return jax.vjp(lambda p: model.apply(combine(p, fixed), rows), params)[1]

    kept = jax.eval_shape(residuals, params, fixed, rows)
    saved = {str(i): x for i, x in enumerate(jax.tree.leaves(kept))}
    return copies * num_bytes(params) + num_bytes(saved)


def _free_bytes(device: Any) -> int | None:
    statistics = device.memory_stats() if device.platform != "cpu" else None
    if not statistics or "bytes_limit" not in statistics:
        return None
    return statistics["bytes_limit"] - statistics.get("bytes_in_use", 0)
