"""A stack trained step by step on shared batches, scored at the steps asked for."""

import collections
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from fusion_jax.evaluation.scoring import Scores
from fusion_jax.models.partition import PARTITION_RULES
from fusion_jax.training.config import FitConfig
from fusion_jax.training.evaluate import DevSets
from fusion_jax.training.feed import Batches, Feed
from fusion_jax.training.loop import IN_FLIGHT, expert_keys
from fusion_jax.training.sharding import place, replicated, shardings
from fusion_jax.training.state import as_float32, create_state
from fusion_jax.training.step import make_train_step
from fusion_jax.trees import Rules, stack_size
from fusion_jax.types import Model, Params, ParamStack


class StepScores(NamedTuple):
    """What came of a stack.

    Attributes:
      scores: step -> scores of each of the K.
      diverged: [K] the first step with a loss or gradient that is not finite, or None.
      params: the stack after the last step.
    """

    scores: dict[int, list[Scores]]
    diverged: list[int | None]
    params: ParamStack


def score_at_steps(
    model: Model,
    stack: ParamStack,
    shared: Params,
    train: Batches,
    test: DevSets,
    config: FitConfig,
    steps: Sequence[int],
    *,
    kind: str,
    names: Sequence[str],
    mesh: Mesh,
    rules: Rules[PartitionSpec] = PARTITION_RULES,
) -> StepScores:
    """Trains K sets of leaves over one frozen host and scores them on the way.

    The rate is constant, so that k steps are the first k of any longer training: a grid
    of steps costs its largest. One that diverges goes on and hurts nobody but itself.

    Args:
      model: the model.
      stack: leaves [K, ...] to train; left as they are.
      shared: leaves [...] of all; never trained.
      train: batches that all of them see.
      test: what they are scored on.
      config: batch size, clipping, decay, dropout; schedule and warm-up must be none.
      steps: counted from 0, which is before any training.
      kind: kind of the task.
      names: of the K; the dropout of one depends on its name alone.
      mesh: mesh of `make_mesh`.
      rules: partition rules of leaves without expert axis.

    Raises:
      ValueError: the rate is not constant.
    """
    if config.schedule != "constant" or config.warmup_fraction:
        raise ValueError(
            f"schedule '{config.schedule}' with warmup_fraction "
            f"{config.warmup_fraction}: after k steps a longer training would stand "
            "elsewhere; set 'constant' and 0"
        )
    size = stack_size(stack)
    shared = place(shared, shardings(shared, rules, mesh), copy=False)
    part = as_float32(stack)
    part = place(part, shardings(part, rules, mesh, stacked=True))
    feed = Feed([train] * size, mesh)
    state = create_state(part, config, rules, mesh)
    step = make_train_step(model, kind, config, state, one_batch=True)
    lanes = {
        "key": expert_keys(config.seed, names),
        "total": np.full(size, max(max(steps), 1), np.int32),
        "rate": np.full(size, config.learning_rate, np.float32),
    }
    lanes = place(lanes, replicated(mesh))
    found: dict[int, list[Scores]] = {}
    in_flight: collections.deque[jax.Array] = collections.deque()
    for done in range(max(steps) + 1):
        if done in steps:
            found[done] = test.scores(state["params"], {}, shared)
        if done == max(steps):
            break
        fed = feed.at(*divmod(done, feed.rounds))
        state, loss = step(state, {}, shared, fed.batch, lanes, fed.active)
        in_flight.append(loss)
        if len(in_flight) > IN_FLIGHT:
            jax.block_until_ready(in_flight.popleft())
    bad = np.asarray(state["bad_step"])
    return StepScores(
        found, [int(step) if step >= 0 else None for step in bad], state["params"]
    )
