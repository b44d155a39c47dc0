"""One train step, for one expert or for all experts of a stack in one program.

The step is two programs. The gradient is compiled once for each shape of a batch, the
update, which takes longer to compile (for MiniLM 2.2 s against 1.5 s on a CPU), once
for all shapes. Both are kept for the whole process: the next fit of the same model
starts without compiling.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fusion_jax.evaluation.losses import loss_of, row_weight
from fusion_jax.training.config import FitConfig
from fusion_jax.training.optimizer import make_optimizer
from fusion_jax.training.sharding import has_rows
from fusion_jax.training.state import State
from fusion_jax.trees import combine
from fusion_jax.types import Batch, Key, Model, Params

Step = Callable[..., tuple[State, jax.Array]]
Apply = Callable[..., Any]


def make_train_step(
    model: Model, kind: str, config: FitConfig, state: State, *, one_batch: bool
) -> Step:
    """The step of a stack of K experts.

    Args:
      model: its `apply` is differentiated by the trained leaves only.
      kind: kind of the task, which names the loss.
      config: optimizer, accumulation, dropout.
      state: the state that will be passed, for its shardings.
      one_batch: whether a batch is shared by all experts ([B, ...]) or stacked
        ([K, B, ...]).

    Returns:
      `(state, held, shared, batch, lanes, active) -> (state, loss [K])`. `state` is
      donated. `held` are leaves [K, ...] and `shared` leaves [...] that are not
      trained. `lanes` is what the experts have of their own: 'key' [K, 2] uint32 key
      data, 'total' [K] int32 steps of the phase, 'rate' [K] float32 peak learning
      rate. `active` [K] bool (an expert that is not keeps its state), or None: all.
    """
    size = len(state["step"])
    where = jax.tree.map(lambda x: x.sharding, state)
    gradient = _gradient_program(
        model.apply,
        kind,
        config.accumulate,
        config.dropout,
        size,
        one_batch,
        _hashable(where["params"]),
    )
    update = _update_program(_update_options(config), size, _hashable(where))

    def step(
        state: State,
        held: Params,
        shared: Params,
        batch: Batch,
        lanes: Mapping[str, jax.Array],
        active: jax.Array | None,
    ) -> tuple[State, jax.Array]:
        loss, gradients = gradient(
            state["params"], held, shared, batch, lanes["key"], state["step"]
        )
        return update(state, gradients, loss, lanes["total"], lanes["rate"], active)

    return step


def loss_and_gradients(
    apply: Apply,
    kind: str,
    params: Params,
    fixed: Params,
    batch: Batch,
    accumulate: int = 1,
    dropout_key: Key | None = None,
) -> tuple[jax.Array, Params]:
    """The mean loss of a batch's real rows, and its gradient by `params`.

    L = sum_b w_b l_b / sum_b w_b. With `accumulate` = A the sum is taken over A
    slices of B / A rows, each divided by the weight of the whole batch, so that the
    result does not depend on A but for rounding.

    Args:
      apply: of the model.
      kind: kind of the task.
      params: trained leaves of one expert.
      fixed: its other leaves; no gradient is taken of them.
      batch: arrays [B, ...].
      accumulate: A, divides B.
      dropout_key: None for no dropout.

    Returns:
      (loss, gradients), float32.
    """
    weight = jnp.maximum(jnp.sum(row_weight(kind, batch)), 1.0)

    def objective(params: Params, rows: Batch, key: Key | None) -> jax.Array:
        outputs = apply(combine(params, fixed), rows, dropout_key=key)
        losses = loss_of(kind)(outputs, rows)
        return jnp.sum(losses * row_weight(kind, rows)) / weight

    if accumulate == 1:
        return jax.value_and_grad(objective)(params, batch, dropout_key)

    rowless, rows = _slices(batch, accumulate)

    def add(carry: Any, index_and_rows: Any) -> tuple[Any, None]:
        index, part = index_and_rows
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, index)
        found = jax.value_and_grad(objective)(params, part | rowless, key)
        return jax.tree.map(jnp.add, carry, found), None

    start = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    total, _ = jax.lax.scan(add, start, (jnp.arange(accumulate), rows))
    return total


def over_experts(
    function: Callable[..., Any], size: int, axes: tuple[int | None, ...]
) -> Callable[..., Any]:
    """`vmap` over the expert axis; for a single expert the axis is dropped instead.

    A batched matrix product of one is not always compiled to a plain one.

    Args:
      function: of one expert.
      size: K.
      axes: 0 for arguments [K, ...], None for shared ones and those that are None.
    """
    if size > 1:
        return jax.vmap(function, in_axes=axes)

    def single(*arguments: Any) -> Any:
        first = (
            x if axis is None else jax.tree.map(lambda leaf: leaf[0], x)
            for x, axis in zip(arguments, axes, strict=True)
        )
        return jax.tree.map(lambda leaf: leaf[None], function(*first))

    return single


@functools.lru_cache(maxsize=32)
def _gradient_program(
    apply: Apply,
    kind: str,
    accumulate: int,
    dropout: bool,
    size: int,
    one_batch: bool,
    where: tuple[Any, tuple[Any, ...]],
) -> Callable[..., tuple[jax.Array, Params]]:
    def one(
        params: Params,
        held: Params,
        shared: Params,
        batch: Batch,
        key: jax.Array,
        step: jax.Array,
    ) -> tuple[jax.Array, Params]:
        dropout_key = None
        if dropout:
            dropout_key = jax.random.fold_in(jax.random.wrap_key_data(key), step)
        fixed = combine(held, shared)
        return loss_and_gradients(
            apply, kind, params, fixed, batch, accumulate, dropout_key
        )

    axes = (0, 0, None, None if one_batch else 0, 0, 0)
    shardings = jax.tree.unflatten(*where)
    return jax.jit(over_experts(one, size, axes), out_shardings=(None, shardings))


@functools.lru_cache(maxsize=32)
def _update_program(
    config: FitConfig, size: int, where: tuple[Any, tuple[Any, ...]]
) -> Callable[..., tuple[State, jax.Array]]:
    def one(
        state: State,
        gradients: Params,
        loss: jax.Array,
        total: jax.Array,
        rate: jax.Array,
        active: jax.Array | None = None,
    ) -> tuple[State, jax.Array]:
        updates, opt_state = make_optimizer(config, total, rate).update(
            gradients, state["opt_state"], state["params"]
        )
        healthy = jnp.isfinite(loss + optax.tree.norm(gradients))
        unseen = (state["bad_step"] < 0) & ~healthy
        after = {
            "params": optax.apply_updates(state["params"], updates),
            "opt_state": opt_state,
            "step": state["step"] + 1,
            "loss_sum": state["loss_sum"] + loss,
            "loss_steps": state["loss_steps"] + 1,
            "bad_step": jnp.where(unseen, state["step"], state["bad_step"]),
        }
        if active is not None:
            after = jax.tree.map(lambda a, b: jnp.where(active, a, b), after, state)
        return after, loss

    def update(*arguments: Any) -> tuple[State, jax.Array]:
        axes = tuple(None if x is None else 0 for x in arguments)
        return over_experts(one, size, axes)(*arguments)

    shardings = jax.tree.unflatten(*where)
    # The losses lie where the counters do: whole on every device.
    outputs = (shardings, shardings["step"])
    return jax.jit(update, donate_argnums=0, out_shardings=outputs)


def _update_options(config: FitConfig) -> FitConfig:
    """The options that the update program depends on, the others at fixed values."""
    return FitConfig(
        schedule=config.schedule,
        warmup_fraction=config.warmup_fraction,
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
    )


def _hashable(tree: Any) -> tuple[Any, tuple[Any, ...]]:
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple(leaves)


def _slices(
    batch: Mapping[str, jax.Array], count: int
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """(entries without rows, the others as [A, B / A, ...])."""
    rowless = {name: x for name, x in batch.items() if not has_rows(name, x)}
    rows = {}
    for name in batch.keys() - rowless.keys():
        x = batch[name]
        if x.shape[0] % count:
            raise ValueError(
                f"accumulate = {count} does not divide the {x.shape[0]} rows of a "
                "batch; choose a divisor"
            )
        # Every slice takes rows from all over the batch, so that a batch spread over
        # devices stays spread.
        rows[name] = x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1)
    return rowless, rows
