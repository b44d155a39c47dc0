"""Diagonal Fisher information of a model's parameters, example by example.

F = 1/N sum_n E_y [ (d log p(y | x_n) / d theta)^2 ], squared entry by entry. The square
of a batch's gradient is something else: it shrinks with the batch and holds the
products of different examples.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fusion_jax.evaluation.losses import kind_of, loss_of, row_weight
from fusion_jax.training.fisher_scores import class_scores, drawn, label_scores
from fusion_jax.training.lookups import (
    Rows,
    add_rows,
    lookups,
    moved_by,
    squared_rows,
)
from fusion_jax.training.sharding import has_rows
from fusion_jax.trees import combine, flatten, partition, unflatten
from fusion_jax.types import Batch, Key, Model, Outputs, Params

ESTIMATORS = ("true", "sampled", "empirical")
_SOFTMAX = ("single_label", "text_to_text")


def collect_fisher(
    model: Model,
    params: Params,
    batches: Iterable[Batch],
    *,
    kind: str,
    estimator: str = "true",
    key: Key | None = None,
    chunk: int | None = None,
) -> tuple[Params, int]:
    """The diagonal Fisher of every parameter, the mean over examples.

    Estimators, g_n(y) the gradient of the log-likelihood of y at example n:

    * 'true': E_y g_n(y)^2 under the model's own p(y | x_n), exact; C - 1 backward
      passes an example for a softmax, C for C independent labels.
    * 'sampled': g_n(y)^2 for one y drawn from p(y | x_n): the same on average, of
      every kind, one backward pass. Of one key a row draws the same whatever batch it
      is in.
    * 'empirical': g_n(y_n)^2 for the true y_n; the labels count, and a model that
      fits them has little of it.

    The log-likelihood is minus the row's loss of `losses.LOSSES`: of a token or span
    row the mean over its parts. Of independent labels it is the sum over labels
    (C times minus the loss), so that all estimators have one unit.

    Args:
      model: with the kind's head; no dropout is used.
      params: differentiated by every leaf.
      batches: of `eval_batches`; one program is compiled for each shape and kept.
      kind: kind of the task; 'mixed' reads it off each batch.
      estimator: see above.
      key: of the draws, for 'sampled'.
      chunk: examples at a time; memory grows by this many parameter trees. Default
        1 on a CPU and 8 elsewhere.

    Returns:
      (tree of float32 numpy arrays like `params`, number of examples). Examples are
      rows of weight 1 (`losses.row_weight`): no padding, no window without the answer.

    Raises:
      ValueError: the kind or estimator is unknown, or they do not go together; a key
        is missing; no example counts; a Fisher is not finite.

    Reference: Matena & Raffel 2022, arXiv:2111.09832.
    """
    if chunk is None:
        # On a CPU one example's gradient is squared and added while it is still in the
        # cache: a two-layer encoder of width 384 takes 3.4 ms an example, in groups
        # of 2 to 8 examples 3.6 to 4.3 ms. Elsewhere small kernels cost their launch.
        chunk = 1 if jax.default_backend() == "cpu" else 8
    params = jax.tree.map(jnp.asarray, params)
    sums = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)
    counts = []
    for batch in batches:
        its_kind = kind_of(batch) if kind == "mixed" else kind
        _check(its_kind, estimator, key, chunk, batch)
        if "mask" not in batch:
            rows = len(batch["attention_mask"])
            batch = {**batch, "mask": np.ones(rows, np.float32)}
        add = _program(model.apply, its_kind, estimator, chunk, _real_labels(batch))
        sums, real = add(sums, params, batch, key)
        counts.append(real)
    examples = sum(int(real) for real in counts)
    if not examples:
        raise ValueError(
            f"collect_fisher: no row of the batches counts for kind {kind!r}; give at "
            "least one with mask 1 and a target"
        )
    fisher = jax.tree.map(lambda x: np.asarray(x) / np.float32(examples), sums)
    bad = [name for name, x in flatten(fisher).items() if not np.isfinite(x).all()]
    if bad:
        raise ValueError(
            f"collect_fisher: {len(bad)} leaves are not finite, {', '.join(bad[:8])} "
            "first; check the parameters, and the dtype that the model computes in"
        )
    return fisher, examples


# Kept for the whole process: the next expert of the same model does not compile it.
@functools.lru_cache(maxsize=32)
def _program(
    apply: Callable[..., Outputs],
    kind: str,
    estimator: str,
    chunk: int,
    labels: tuple[int, ...] | None,
) -> Callable[..., tuple[Params, jax.Array]]:
    """(sums, params, batch, key) -> (sums, examples), the first donated."""

    def scores(
        params: Params, moves: Rows, row: Batch, key: Key | None
    ) -> tuple[jax.Array, Rows]:
        """[S]: the sum of the squares of their gradients is one example's Fisher."""
        outputs, ids = moved_by(apply, params, row, moves)
        if estimator == "true":
            logits = outputs["logits"][0].astype(jnp.float32)
            logits = logits if labels is None else logits[np.asarray(labels)]
            if kind == "multi_label":
                return label_scores(logits), ids
            return class_scores(logits), ids
        if estimator == "sampled":
            assert key is not None  # `_check`
            own = jax.random.fold_in(key, row["index"][0])
            fixed = lax.stop_gradient(outputs)
            row = {**row, **drawn(kind, fixed, row, own)}
        parts = 1
        if kind == "multi_label":
            parts = outputs["logits"].shape[-1] if labels is None else len(labels)
        return parts * loss_of(kind)(outputs, row), ids

    def squares(
        tables: Params,
        rest: Params,
        moves: Rows,
        row: Batch,
        key: Key | None,
        start: Params,
    ) -> tuple[Params, Rows, Rows]:
        """(`start` and one example's Fisher of the rest; that of the tables; ids)."""
        values, pull, ids = jax.vjp(
            lambda rest, moves: scores(combine(tables, rest), moves, row, key),
            rest,
            moves,
            has_aux=True,
        )

        def add(i: jax.Array, totals: tuple[Params, Rows]) -> tuple[Params, Rows]:
            gradients, by_move = pull(
                (jnp.arange(len(values)) == i).astype(values.dtype)
            )
            found = {name: squared_rows(ids[name], g) for name, g in by_move.items()}
            squared = jax.tree.map(
                lambda g: jnp.square(g.astype(jnp.float32)), gradients
            )
            return jax.tree.map(jnp.add, totals, (squared, found))

        begun = {
            name: jnp.zeros((x.size // x.shape[-1], x.shape[-1]))
            for name, x in moves.items()
        }
        total, rows = lax.fori_loop(0, len(values), add, (start, begun))
        return total, rows, ids

    def add(
        sums: Params, params: Params, batch: Batch, key: Key | None
    ) -> tuple[Params, jax.Array]:
        counts = row_weight(kind, batch) > 0
        order = jnp.argsort(~counts, stable=True)  # those that count come first
        real = jnp.sum(counts, dtype=jnp.int32)
        whole = {name: x for name, x in batch.items() if not has_rows(name, x)}
        rows = {n: jnp.asarray(x) for n, x in batch.items() if n not in whole}
        looked_up = lookups(apply, params, whole | {n: x[:1] for n, x in rows.items()})
        chosen = [re.escape(name) for name in looked_up]
        tables, rest = partition(params, chosen)
        moves = {name: jnp.zeros(x.shape, x.dtype) for name, x in looked_up.items()}

        def example(place: jax.Array, start: Params) -> tuple[Params, Rows, Rows]:
            row = {name: x[order[place]][None] for name, x in rows.items()}
            return squares(tables, rest, moves, whole | row, key, start)

        def group(i: jax.Array, sums: tuple[Params, Rows]) -> tuple[Params, Rows]:
            total, of_tables = sums
            if chunk == 1:
                total, found, ids = example(i, total)
            else:
                places = i * chunk + jnp.arange(chunk)
                weights = (places < real).astype(jnp.float32)
                start = jax.tree.map(jnp.zeros_like, total)
                more, found, ids = jax.vmap(example, (0, None))(
                    jnp.minimum(places, real - 1), start
                )
                # Highest: the default of an accelerator would round the squares.
                total = jax.tree.map(
                    lambda t, x: t + jnp.tensordot(weights, x, 1, precision="highest"),
                    total,
                    more,
                )
                found = {
                    name: (weights[:, None, None] * x).reshape(-1, x.shape[-1])
                    for name, x in found.items()
                }
            return total, {
                name: add_rows(table, ids[name], found[name])
                for name, table in of_tables.items()
            }

        # Rows that do not count cost nothing: the loop ends before them.
        own, others = partition(sums, chosen)
        total, of_tables = lax.fori_loop(
            0, -(-real // chunk), group, (others, flatten(own))
        )
        return combine(unflatten(of_tables), total), real

    return jax.jit(add, donate_argnums=0)


def _real_labels(batch: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Columns that are classes of the task; None = all. No pass for the others."""
    mask = batch.get("label_mask")
    if mask is None:
        return None
    return tuple(int(c) for c in np.flatnonzero(np.asarray(mask) > 0))


def _check(
    kind: str, estimator: str, key: Key | None, chunk: int, batch: Batch
) -> None:
    loss_of(kind)
    faults = []
    if estimator not in ESTIMATORS:
        faults.append(
            f"estimator {estimator!r} is unknown; there are {', '.join(ESTIMATORS)}"
        )
    if estimator == "true" and kind not in (*_SOFTMAX, "multi_label"):
        faults.append(
            f"the exact expectation ('true') of kind {kind!r} is a sum over all joint "
            "answers; use estimator='sampled' (with a key) or 'empirical'"
        )
    if estimator == "sampled" and key is None:
        faults.append("estimator='sampled' draws labels; pass key=")
    if estimator == "sampled" and "index" not in batch:
        faults.append("'sampled' draws by row number; the batch has no 'index'")
    if chunk < 1:
        faults.append(f"chunk={chunk} must be at least 1")
    if faults:
        raise ValueError("collect_fisher: " + "; ".join(faults))
