"""Where adapters and compacters stand, how wide they are, and how they are called."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from fusion_jax.peft.config import PeftConfig
from fusion_jax.peft.leaves import at
from fusion_jax.peft.places import FAMILIES, chosen, family_of
from fusion_jax.types import Around, Params

REDUCTION = {"houlsby": 16.0, "pfeiffer": 16.0, "parallel": 2.0}
Inner = Callable[[Mapping[str, Any], jax.Array], jax.Array]


def widths(config: PeftConfig, host: Params) -> dict[str, tuple[int, int]]:
    """Path of every layer or norm with a bottleneck -> (d, m).

    Args:
      config: place, targets and sizes.
      host: tree of arrays or shapes.

    Raises:
      ValueError: no target, a bottleneck of width 0, or a parallel place that is not
        the end of a feed-forward.
    """
    default = None
    if not config.targets:
        places = FAMILIES[family_of(host)]
        default = {
            "houlsby": f"{places.attention_outputs}|{places.feedforward_outputs}",
            "pfeiffer": places.pfeiffer,
            "parallel": places.feedforward_outputs,
        }[config.place]
    factor = config.reduction_factor
    if not factor:
        factor = 32.0 if config.kind == "compacter" else REDUCTION[config.place]
    found, wrong = {}, []
    for path, leaf in chosen(config, host, default, norms=True).items():
        width = int(leaf.shape[-1])
        inner = config.bottleneck or int(width // factor)
        found[path] = (width, inner)
        if inner < 1:
            wrong.append(f"{path}: width {width} by reduction_factor {factor:g} is 0")
        beside = at(host, f"{path.rpartition('/')[0]}/up")
        if config.place == "parallel" and beside is None:
            wrong.append(f"{path}: a parallel adapter ends a feed-forward, after 'up'")
    if wrong:
        raise ValueError(f"{config.kind}: {'; '.join(wrong)}")
    return found


def scale_of(config: PeftConfig) -> float:
    """What is multiplied with what a bottleneck adds: 1, of a parallel one 4."""
    return config.scale or (4.0 if config.place == "parallel" else 1.0)


def activation_of(config: PeftConfig) -> str:
    """The config's activation, or the kind's and place's own."""
    if config.kind == "compacter":
        return config.activation or "gelu_new"
    return config.activation or ("gelu" if config.place == "houlsby" else "relu")


def hook_of(config: PeftConfig, params: Params, inner: Inner) -> Around:
    """The hook of a kind whose parts are bottlenecks.

    After a layer, A(h) = h + scale * inner(h) on its output h. At a norm, the place of
    Pfeiffer where norms follow the sum, norm(x + scale * inner(norm(x))). Parallel,
    h + scale * inner(x) with x the input of the feed-forward that the layer ends.

    Args:
      config: kind, place and scale.
      params: tree with at least the module's leaves of the layers that are run.
      inner: `(leaves, x) -> what is added, without scale`.
    """
    scale, parallel = scale_of(config), config.place == "parallel"
    entered: dict[str, jax.Array] = {}

    def hook(name: str, call: Any, x: jax.Array) -> jax.Array:
        block, _, last = name.rpartition("/")
        if parallel and last == "up":
            entered[block] = x
        own = at(params, f"{name}/{config.kind}")
        y = call(x)
        if own is None:
            return y
        if last == "norm":
            return call(x + (scale * inner(own, y)).astype(x.dtype))
        return y + scale * inner(own, entered[block] if parallel else y).astype(y.dtype)

    return hook
