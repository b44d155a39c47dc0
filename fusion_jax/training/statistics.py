"""Second moments of what every linear layer of a model reads, over a data set."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fusion_jax.evaluation.losses import loss_of
from fusion_jax.merging.layer_inputs import Grams, mean_moment, mirrored
from fusion_jax.models.partition import PARTITION_RULES
from fusion_jax.training.batch_sums import Sums, batch_sums, row_mask
from fusion_jax.training.sharding import (
    batch_shardings,
    default_mesh,
    place,
    replicated,
    shardings,
)
from fusion_jax.trees import Rules, flatten
from fusion_jax.types import Batch, Model, Params


def collect_grams(
    model: Model,
    params: Params,
    batches: Iterable[Batch],
    *,
    layers: str = ".*",
    outputs: bool = False,
    kind: str | None = None,
    mesh: Mesh | None = None,
    rules: Rules[PartitionSpec] = PARTITION_RULES,
) -> Grams:
    """The mean of [x; 1] [x; 1]^T over the real tokens of a data set, by input.

    M = 1/N sum_n [x_n; 1] [x_n; 1]^T, x_n what the layer reads of token n. Padding
    tokens and padding rows are left out, dropout is off, sums are float32 with
    products at the highest precision. Layers that read one array share one M. Where a
    layer runs over one token a row (a classifier's head), N counts rows.

    With `outputs` also, for every layer, the mean over the same tokens of g_n g_n^T,
    g_n the gradient at the layer's output of its row's log-likelihood under the true
    target (minus the loss of `losses.LOSSES`, a mean over a row's parts as it is).

    Args:
      model: whose `apply` takes a tap. `build_model(..., every_token=True)` lets the
        last layer see all tokens; without, a classifier's reads the first alone.
      params: of the model, whole or placed.
      batches: of `eval_batches`; one program is compiled for each shape and kept.
      layers: regular expression; kernel leaves that match in full are recorded. A
        leaf that is no linear layer of the forward pass is in no result.
      outputs: whether to collect the moments of the gradients: one backward pass.
      kind: kind of the task, which names the loss; for `outputs`.
      mesh: rows lie over 'data', parameters over 'model' and so do the rows of every
        sum that 'model' divides. Default one device.
      rules: partition rules of the parameters.

    Returns:
      The Grams, whole float32 numpy arrays, each divided by its own count of tokens.

    Raises:
      ValueError: there is no batch, or no real token for some input; the pattern
        matches no linear layer; sums are not finite; `outputs` without a known kind.

    References: RegMean, Jin et al. 2023, arXiv:2212.09849 (inputs); MaTS, Tam et al.
    2024, arXiv:2312.04339 (outputs).
    """
    if outputs:
        if kind is None:
            raise ValueError(
                "collect_grams: outputs=True differentiates a loss; pass kind="
            )
        loss_of(kind)
    mesh = default_mesh() if mesh is None else mesh
    options = (model.apply, layers, kind if outputs else None)
    params = place(params, shardings(params, rules, mesh), copy=False)
    sums, readers, add, examples = None, {}, None, 0
    for batch in batches:
        if sums is None or add is None:
            shapes, readers = _shapes(*options, params, batch)
            _check_some(readers, layers, params)
            where = jax.tree.map(lambda x: _rows_over_model(x.shape, mesh), shapes)
            zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
            sums = place(zeros, where)
            add = _program(*options, _hashable(where))
        sums = add(sums, params, place(batch, batch_shardings(batch, mesh)))
        examples += int(np.sum(np.asarray(row_mask(batch)) > 0))
    if sums is None:
        raise ValueError("collect_grams: no batches; give at least one with a real row")
    return _means(_fetch(sums, mesh), readers, examples)


# Kept for the whole process: the next expert of the same model does not compile it.
@functools.lru_cache(maxsize=32)
def _program(
    apply: Callable[..., Any], layers: str, kind: str | None, where: Any
) -> Callable[[Sums, Params, Batch], Sums]:
    """(sums, params, batch) -> sums, the first donated."""

    def add(sums: Sums, params: Params, batch: Batch) -> Sums:
        more, _ = batch_sums(apply, layers, kind, params, batch)
        return jax.tree.map(jnp.add, sums, more)

    out_shardings = jax.tree.unflatten(*where)
    return jax.jit(add, donate_argnums=0, out_shardings=out_shardings)


def _shapes(
    apply: Callable[..., Any],
    layers: str,
    kind: str | None,
    params: Params,
    batch: Batch,
) -> tuple[Any, dict[str, str]]:
    """(the sums as shapes, kernel leaf -> input), of a trace that computes nothing."""
    readers: dict[str, str] = {}

    def traced(params: Params, batch: Batch) -> Sums:
        sums, found = batch_sums(apply, layers, kind, params, batch)
        readers.update(found)
        return sums

    return jax.eval_shape(traced, params, batch), readers


def _rows_over_model(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Rows of a matrix over 'model', the whole array where they do not divide."""
    if len(shape) == 2 and shape[0] % mesh.shape["model"] == 0:
        return NamedSharding(mesh, PartitionSpec("model"))
    return replicated(mesh)


def _hashable(tree: Any) -> tuple[Any, tuple[Any, ...]]:
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple(leaves)


def _fetch(sums: Sums, mesh: Mesh) -> Sums:
    """The sums as numpy arrays; every process gets all of them."""

    def whole(x: jax.Array) -> np.ndarray:
        if not x.is_fully_addressable:
            everywhere: Any = replicated(mesh)
            x = jax.jit(lambda x: x, out_shardings=everywhere)(x)
        return np.asarray(x)

    return jax.tree.map(whole, sums)


def _means(sums: Sums, readers: dict[str, str], examples: int) -> Grams:
    """Divides by the counts and puts the sums of an input together."""
    counts = {name: int(moment.count) for name, moment in sums["inputs"].items()}
    empty = [name for name, count in counts.items() if not count]
    if empty:
        raise ValueError(
            f"collect_grams: no real token for {_listed(empty)}; the batches hold "
            f"{examples} rows of mask 1: check their 'mask' and 'attention_mask'"
        )
    bad = [
        f"{what} {name}"
        for part, what in (("inputs", "inputs of"), ("outputs", "gradients at"))
        for name, of in sums[part].items()
        if not all(np.isfinite(x).all() for x in jax.tree.leaves(of))
    ]
    if bad:
        raise ValueError(
            f"collect_grams: {len(bad)} sums are not finite: {_listed(bad)}; check "
            "the parameters, and the dtype that the model computes in"
        )
    inputs: dict[str, Any] = {n: mean_moment(m) for n, m in sums["inputs"].items()}
    outputs: dict[str, Any] = {
        name: mirrored(panels) / np.float32(counts[readers[name]])
        for name, panels in sums["outputs"].items()
    }
    return Grams(
        inputs=inputs,
        counts={name: float(count) for name, count in counts.items()},
        readers=readers,
        outputs=outputs,
        examples=examples,
    )


def _check_some(readers: Mapping[str, str], layers: str, params: Params) -> None:
    if not readers:
        kernels = [name for name in flatten(params) if name.endswith("/kernel")]
        raise ValueError(
            f"collect_grams: layers={layers!r} matches no linear layer in full; the "
            f"kernels are {_listed(kernels)}"
        )


def _listed(names: list[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
