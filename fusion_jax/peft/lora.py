"""LoRA, rsLoRA, DoRA, PiSSA: y = x W + s drop(x) a b."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fusion_jax.peft.config import PeftConfig
from fusion_jax.peft.delta import column_norms, delta, rank_of, scaling
from fusion_jax.peft.leaves import at, dropped, kaiming_bound, normal, product, uniform
from fusion_jax.peft.places import FAMILIES, chosen, family_of
from fusion_jax.trees import flatten, unflatten
from fusion_jax.types import Around, Key, Params

OWNS = r".*/lora/(a|b|magnitude)"


def init(config: PeftConfig, host: Params, key: Key) -> Params:
    """a, b and perhaps the magnitude of every target; b = 0, so that nothing changes.

    `init` of the config says what a [in, r] starts from:
    default U(+-1/sqrt(in)) (peft, loralib); gaussian N(0, (1/r)^2); he
    U(+-sqrt(6/in)) (flax, 2.45 times wider); random: as default and b
    U(+-1/sqrt(r)), no no-op; pissa: a = U_r sqrt(S_r/s), b = sqrt(S_r/s) V_r^T of
    W = U S V^T, on a host that becomes W - s a b (see `pissa`). On a table a = 0 and
    b ~ N(0, 1) but for random and pissa.

    Args:
      config: of kind lora.
      host: tree whose layers are meant; values are read by DoRA and PiSSA alone.
      key: each leaf has a stream of its own.

    Returns:
      Tree of the module's leaves, float32.
    """
    default = None if config.targets else FAMILIES[family_of(host)].lora
    leaves: dict[str, Any] = {}
    wrong = []
    for path, kernel in chosen(config, host, default).items():
        rank, fan_in, fan_out = rank_of(config, path), *kernel.shape
        is_table = at(host, f"{path}/embedding") is not None
        if config.init == "pissa" and rank > min(fan_in, fan_out):
            wrong.append(f"{path}: rank {rank} is above min{kernel.shape}")
        elif config.use_dora and is_table:
            wrong.append(
                f"{path}: use_dora on a table, whose rows have no output units"
            )
        else:
            shapes = (fan_in, rank), (rank, fan_out)
            own = _start(config, path, kernel, shapes, is_table, key)
            leaves |= {f"{path}/lora/{name}": leaf for name, leaf in own.items()}
    if wrong:
        raise ValueError(f"lora: {'; '.join(wrong)}: change rank_pattern or targets")
    return unflatten(leaves)


def around(
    config: PeftConfig, params: Params, dropout_key: Key | None = None
) -> Around:
    """The hook: s drop(x) a b beside every layer that has the leaves.

    DoRA: y = b + m / norm * (x W + s drop(x) a b), the norm of each output unit of
    W + s a b taken as a constant by the gradient.

    Reference: Hu et al. 2021, arXiv 2106.09685 (parallel, scaled addition); DoRA: Liu
    et al. 2024, arXiv 2402.09353.
    """

    def hook(name: str, call: Any, x: jax.Array) -> jax.Array:
        own = at(params, f"{name}/lora")
        y = call(x)
        if own is None:
            return y
        a, b = own["a"], own["b"]
        scale = scaling(config, name, a.shape[-1])
        if jnp.issubdtype(x.dtype, jnp.integer):
            return y + scale * product(jnp.take(a, x, axis=0).astype(y.dtype), b)
        inputs = dropped(x, config.dropout, dropout_key, name).astype(y.dtype)
        low = scale * product(inputs, a, b)
        if "magnitude" not in own:
            return y + low
        host = at(params, name)
        bias = host["bias"].astype(y.dtype) if "bias" in host else 0
        whole = host["kernel"].astype(jnp.float32) + scale * (a @ b)
        norm = jax.lax.stop_gradient(column_norms(whole))
        return bias + (own["magnitude"] / norm).astype(y.dtype) * (y - bias + low)

    return hook


def merge(config: PeftConfig, host: Params, params: Params) -> Params:
    """W + delta for every layer that has the leaves, in the kernel's dtype."""
    leaves = dict(flatten(host))
    for path, own in parts(params).items():
        name = f"{path}/kernel" if f"{path}/kernel" in leaves else f"{path}/embedding"
        kernel = jnp.asarray(leaves[name])
        whole = kernel.astype(jnp.float32) + delta(config, path, own, kernel)
        leaves[name] = whole.astype(kernel.dtype)
    return unflatten(leaves)


def parts(params: Params) -> dict[str, dict[str, Any]]:
    """Path of every layer with low-rank leaves -> {'a', 'b', perhaps 'magnitude'}."""
    found: dict[str, dict[str, Any]] = {}
    for name, leaf in flatten(params).items():
        path, _, last = name.rpartition("/lora/")
        if path:
            found.setdefault(path, {})[last] = leaf
    return found


def _start(
    config: PeftConfig,
    path: str,
    kernel: Any,
    shapes: tuple[tuple[int, int], tuple[int, int]],
    is_table: bool,
    key: Key,
) -> Mapping[str, jax.Array]:
    (fan_in, rank), _ = shapes
    names = f"{path}/lora/a", f"{path}/lora/b"
    if config.init == "pissa":
        left, values, right = jnp.linalg.svd(
            jnp.asarray(kernel, jnp.float32), full_matrices=False
        )
        roots = jnp.sqrt(values[:rank] / scaling(config, path))
        return {"a": left[:, :rank] * roots, "b": roots[:, None] * right[:rank]}
    if is_table:
        drawn = [normal(key, n, s, 1.0) for n, s in zip(names, shapes, strict=True)]
        random = config.init == "random"
        return {"a": drawn[0] if random else jnp.zeros(shapes[0]), "b": drawn[1]}
    if config.init == "gaussian":
        a = normal(key, names[0], shapes[0], 1 / rank)
    else:
        he = config.init == "he"
        bound = math.sqrt(6 / fan_in) if he else kaiming_bound(fan_in)
        a = uniform(key, names[0], shapes[0], bound)
    b = jnp.zeros(shapes[1], jnp.float32)
    if config.init == "random":
        b = uniform(key, names[1], shapes[1], kaiming_bound(rank))
    own = {"a": a, "b": b}
    if config.use_dora:
        low = scaling(config, path) * (a @ b)
        own["magnitude"] = column_norms(jnp.asarray(kernel, jnp.float32) + low)
    return own
