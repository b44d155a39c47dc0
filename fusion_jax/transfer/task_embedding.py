"""TaskEmb: tasks as the squares of the gradients of models tuned on them.

What `training.fisher` computes is of examples; this is, as in the paper, of batches.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax import trees
from fusion_jax.evaluation.losses import mean_loss, row_weight
from fusion_jax.transfer.ranking import fused_ranks
from fusion_jax.types import Batch, Model, Params

COMPONENTS = r"encoder/layer_\d+/.*"
"""Leaves that are components of the embedding: neither tables nor the classifier."""


def task_embedding(
    model: Model,
    params: Params,
    batches: Iterable[Batch],
    *,
    kind: str,
    components: str = COMPONENTS,
) -> dict[str, np.ndarray]:
    """The embedding of one task.

    E = 1/N sum_b (d l_b / d theta)^2, l_b the mean loss of batch b, N rows in all.

    It depends on how rows are batched: give all tasks batches of one size (32 in the
    paper). Sums are float32.

    Args:
      model: with the kind's head; no dropout is used.
      params: tuned on the task.
      batches: of labelled rows of the task.
      kind: of the task.
      components: regular expression of the leaves that are kept.

    Returns:
      Leaf name -> flat vector.

    Raises:
      ValueError: no leaf is named so, no row counts, or a value is not finite.

    Reference: Vu et al. 2020, arXiv:2005.00770.
    """
    chosen, rest = trees.partition(params, components)
    if not trees.flatten(chosen):
        raise ValueError(
            f"components: no leaf matches {components!r}; the first leaves are "
            f"{', '.join(list(trees.flatten(params))[:4])}"
        )
    add = _program(model.apply, kind)
    total = jax.tree.map(lambda x: jnp.zeros(np.shape(x), jnp.float32), chosen)
    rows = 0
    for batch in batches:
        real = int(np.sum(np.asarray(row_weight(kind, batch)) > 0))
        if real:
            total = add(total, chosen, rest, batch)
            rows += real
    if not rows:
        raise ValueError(f"no row of the batches counts for kind {kind!r}")
    found = {
        name: np.ravel(np.asarray(leaf)) / np.float32(rows)
        for name, leaf in trees.flatten(total).items()
    }
    bad = [name for name, vector in found.items() if not np.isfinite(vector).all()]
    if bad:
        raise ValueError(
            f"the embedding is not finite in {', '.join(bad[:8])} ({len(bad)} leaves); "
            "check the parameters"
        )
    return found


@functools.lru_cache(maxsize=32)
def _program(apply: Callable[..., Any], kind: str) -> Callable[..., Params]:
    """(sums, chosen, rest, batch) -> sums, the first donated."""

    def loss(chosen: Params, rest: Params, batch: Batch) -> jax.Array:
        outputs = apply(trees.combine(chosen, rest), batch)
        return mean_loss(kind, outputs, batch)

    def add(total: Params, chosen: Params, rest: Params, batch: Batch) -> Params:
        gradient = jax.grad(loss)(chosen, rest, batch)
        return jax.tree.map(
            lambda t, g: t + jnp.square(g.astype(jnp.float32)), total, gradient
        )

    return jax.jit(add, donate_argnums=0)


def component_distances(
    embeddings: Mapping[str, Mapping[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """1 - cos of each component, for all pairs.

    Args:
      embeddings: task -> embedding of `task_embedding`, of models of one structure.

    Returns:
      Component -> [N, N] float64. A component that is zero for a task (a leaf that no
      gradient reaches) says nothing of anybody, and is in no result.

    Raises:
      ValueError: components or their sizes differ between tasks, all named, or none
        says anything.
    """
    names = list(embeddings)
    shapes = [{c: x.shape for c, x in embeddings[name].items()} for name in names]
    other = [name for name, own in zip(names, shapes, strict=True) if own != shapes[0]]
    if other:
        raise ValueError(
            f"embeddings of {', '.join(other)} have other components than those of "
            f"{names[0]}; take models of one structure"
        )
    found = {}
    for component in shapes[0]:
        rows = np.stack([embeddings[name][component] for name in names])
        rows = rows.astype(np.float64)
        lengths = np.linalg.norm(rows, axis=1)
        if (lengths > 0).all():
            unit = rows / lengths[:, None]
            found[component] = 1 - unit @ unit.T
    if not found:
        raise ValueError("every component is zero for some task; check the models")
    return found


def embedding_ranks(
    embeddings: Mapping[str, Mapping[str, np.ndarray]], names: Sequence[str]
) -> np.ndarray:
    """Ranks of sources by all components together: reciprocal rank fusion.

    Args:
      embeddings: task -> embedding.
      names: of the tasks, in the order of rows and columns.

    Returns:
      [N, N] int64 as of `ranking.ranks`.
    """
    ordered = {name: embeddings[name] for name in names}
    return fused_ranks(component_distances(ordered), names)
