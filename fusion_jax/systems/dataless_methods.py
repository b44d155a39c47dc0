"""The ways of merging that are compared: each yields variants to choose from on dev."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax import trees
from fusion_jax.checkpoints.in_process import merge_arrays
from fusion_jax.merging import fisher as merge_fisher
from fusion_jax.systems.dataless_given import Fusion, Leaves, Variant, flat
from fusion_jax.systems.dataless_regressions import mats, regmean, regmean_plus_plus
from fusion_jax.types import Params


def average(fusion: Fusion) -> Iterator[Variant]:
    """The mean of all leaves."""
    yield Variant({}, trees.unflatten(fusion.averaged), fusion.average_head)


def fisher(fusion: Fusion) -> Iterator[Variant]:
    """The mean weighted by diagonal Fisher information, entry by entry."""
    fishers = [trees.flatten(member.fisher) for member in fusion.members]
    norm = fusion.options.statistics.normalize
    if norm == "model":
        # By the norm over the whole model, encoder and head.
        fishers = [_of_norm_one(own) for own in fishers]

    def merged(stack: Params, row: Any, indices: Sequence[int], place: str) -> Params:
        own = [
            trees.unflatten({name: fishers[i][place + name] for name in flat(stack)})
            for i in indices
        ]
        by_tensor = norm == "tensor"
        return _fisher(
            stack, jnp.asarray(row, jnp.float32), trees.stack(own), by_tensor
        )

    everyone = range(len(fusion.members))
    encoders = trees.stack(
        [{"encoder": member.params["encoder"]} for member in fusion.members]
    )
    yield Variant(
        {},
        merged(encoders, fusion.coefficients, everyone, ""),
        fusion.merge_heads(functools.partial(merged, place="head/")),
    )


def task_arithmetic(fusion: Fusion) -> Iterator[Variant]:
    """theta_0 + scale * sum_k (theta_k - theta_0)."""
    for scale in fusion.options.scales:
        leaves = merge_arrays(
            fusion.encoders,
            "task_arithmetic",
            [scale] * len(fusion.members),
            base=fusion.base_leaves,
        )
        yield Variant({"scale": scale}, trees.unflatten(leaves), fusion.average_head)


def ties(fusion: Fusion) -> Iterator[Variant]:
    """Trimmed task vectors whose signs agree, at a density of 0.2."""
    for scale in fusion.options.ties_scales:
        leaves = merge_arrays(
            fusion.encoders,
            "ties",
            [1.0] * len(fusion.members),
            base=fusion.base_leaves,
            options={"density": 0.2, "scale": scale},
        )
        yield Variant({"scale": scale}, trees.unflatten(leaves), fusion.average_head)


def wudi(fusion: Fusion) -> Iterator[Variant]:
    """Least interference of task vectors, which stand for their own inputs."""
    leaves = merge_arrays(
        fusion.encoders,
        "wudi",
        [1.0] * len(fusion.members),
        base=fusion.base_leaves,
        options={"input_axis": -2},
    )
    yield Variant({}, trees.unflatten(leaves), fusion.average_head)


MERGED: dict[str, Callable[[Fusion], Iterator[Variant]]] = {
    "average": average,
    "fisher": fisher,
    "regmean": regmean,
    "regmean_plus_plus": regmean_plus_plus,
    "mats": mats,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
    "wudi": wudi,
}
"""Name -> method; a new one is a function and a line here."""


@functools.partial(jax.jit, static_argnums=3)
def _fisher(
    stack: Params, row: jax.Array, statistics: Params, by_tensor: bool
) -> Params:
    norm = "tensor" if by_tensor else "none"
    return merge_fisher(stack, row, statistics=statistics, normalize=norm)


def _of_norm_one(fishers: Leaves) -> Leaves:
    norm = np.sqrt(sum(np.vdot(x, x) for x in fishers.values())) or 1.0
    return {name: (x / norm).astype(np.float32) for name, x in fishers.items()}
