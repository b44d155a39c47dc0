"""The training loop: one group of experts, one program, from the start or a state."""

import collections
import functools
import time
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from fusion_jax.training.config import FitConfig
from fusion_jax.training.evaluate import DevScore, DevSets, Judged
from fusion_jax.training.feed import Fed, Feed
from fusion_jax.training.keep import keep_better, start_keeping, take_average
from fusion_jax.training.log import MetricsLog, ProgressBar
from fusion_jax.training.optimizer import learning_rate
from fusion_jax.training.phases import Phase, phases, split
from fusion_jax.training.resume import Course, Saver
from fusion_jax.training.selection import observe
from fusion_jax.training.sharding import place, replicated
from fusion_jax.training.state import State, create_state, reset_epoch
from fusion_jax.training.step import make_train_step
from fusion_jax.trees import Rules, combine
from fusion_jax.types import Model, Params, ParamStack

IN_FLIGHT = 2
"""Steps handed to the device before the host waits: it prepares the next meanwhile."""


class Diverged(FloatingPointError):
    """A loss or a gradient is not finite."""


class Group(NamedTuple):
    """What trains together, and on what.

    Attributes:
      name: of the fit, in metrics.jsonl.
      names: of the K experts.
      model, kind: what is trained, and the kind of the tasks.
      stack: leaves [K, ...] in place on the mesh; donated.
      shared: leaves [...] of all experts, in place, never trained.
      feed: training batches.
      devs: dev sets, what scores in their place, or None.
      config: how to train.
      mesh, rules: where things lie.
    """

    name: str
    names: tuple[str, ...]
    model: Model
    kind: str
    stack: ParamStack
    shared: Params
    feed: Feed
    devs: DevSets | Judged | None
    config: FitConfig
    mesh: Mesh
    rules: Rules[PartitionSpec]


def train_group(
    group: Group, saver: Saver, log: MetricsLog, *, progress: bool
) -> tuple[Course, ParamStack]:
    """Trains the experts of a group to their end.

    Args:
      group: what to train.
      saver: gives back a saved state and takes new ones.
      log: takes a line an expert every `log_every` steps and one an epoch.
      progress: whether to show a progress bar.

    Returns:
      (course at the end, the parameters kept, [K, ...]).

    Raises:
      Diverged: names the expert and the step.
    """
    course = saver.course()
    resumed = course is not None
    course = course or Course.start(len(group.names))
    rounds, plan = group.feed.rounds, phases(group.config)
    done = course.position(rounds)
    log.rewind(group.name, group.names, done)
    bar = ProgressBar(group.name, plan[-1].last * rounds, done, shown=progress)
    stack = group.stack
    try:
        for number, phase in enumerate(plan):
            if number < course.phase:
                continue
            restore = resumed and number == course.phase
            course.phase = number
            stack = _run_phase(group, phase, stack, course, saver, log, bar, restore)
    finally:
        bar.close()
        saver.close()
    saver.finish(course, stack)
    return course, stack


def _run_phase(
    group: Group,
    phase: Phase,
    stack: ParamStack,
    course: Course,
    saver: Saver,
    log: MetricsLog,
    bar: ProgressBar,
    restore: bool,
) -> ParamStack:
    """Runs the epochs of a phase that are left; the stack to go on with."""
    spent, started = course.seconds, time.monotonic()
    config, feed, everywhere = phase.config, group.feed, replicated(group.mesh)
    trained, held = split(stack, phase, config.frozen)
    kept = start_keeping(config, trained, group.mesh) if phase.chooses else {}
    state = create_state(trained, config, group.rules, group.mesh)
    if restore:
        arrays = saver.restore({"state": state, "kept": kept})
        state, kept = arrays["state"], arrays["kept"]
    step = make_train_step(
        group.model, group.kind, config, state, one_batch=feed.one_batch
    )
    totals = feed.steps * (phase.last - phase.first)
    lanes = {
        "key": expert_keys(config.seed, group.names),
        "total": totals.astype(np.int32),
        "rate": np.full(len(totals), config.learning_rate, np.float32),
    }
    lanes = place(lanes, everywhere)

    while course.epoch < phase.last and not course.all_stopped:
        if course.inner == 0:
            state = reset_epoch(state, group.mesh)
        in_flight: collections.deque[jax.Array] = collections.deque()
        while course.inner < feed.rounds:
            fed = feed.at(course.epoch, course.inner)
            state, loss = step(state, held, group.shared, fed.batch, lanes, fed.active)
            course.advance(fed.tokens)
            bar.step(int(fed.tokens.sum()))
            in_flight.append(loss)
            if len(in_flight) > IN_FLIGHT:
                in_flight.popleft().block_until_ready()
            position = course.position(feed.rounds)
            if position % config.log_every == 0:
                _check_finite(group, state, course)
                _log_step(group, phase, state, loss, fed, totals, course, log, bar)
            due = config.save_every and position % config.save_every == 0
            if due and course.inner < feed.rounds:
                _check_finite(group, state, course)
                course.seconds = spent + time.monotonic() - started
                saver.save(position, course, {"state": state, "kept": kept}, due=True)
        _check_finite(group, state, course)
        candidate = state["params"]
        if phase.chooses:
            kept, candidate = take_average(config, kept, candidate)
        scores = None
        if group.devs is not None:
            scores = group.devs.score(candidate, held, group.shared)
        course.seconds = spent + time.monotonic() - started
        better = _end_epoch(group, phase, state, scores, course, log, bar)
        if any(better):
            kept = keep_better(kept, candidate, place(np.array(better), everywhere))
        position = course.position(feed.rounds)
        course.epoch, course.inner = course.epoch + 1, 0
        if course.epoch < phases(group.config)[-1].last and not course.all_stopped:
            saver.save(position, course, {"state": state, "kept": kept}, due=False)
    return combine(kept["best"] if phase.chooses else state["params"], held)


def _end_epoch(
    group: Group,
    phase: Phase,
    state: State,
    scores: list[DevScore] | None,
    course: Course,
    log: MetricsLog,
    bar: ProgressBar,
) -> list[bool]:
    """Takes an epoch's scores into the course; which experts are at their best."""
    sums, steps = np.asarray(state["loss_sum"]), np.asarray(state["loss_steps"])
    done = np.asarray(state["step"])
    better = [False] * len(group.names)
    lines = []
    for k, expert in enumerate(group.names):
        standing = course.standings[k]
        if standing.stopped:
            continue
        dev = scores[k] if scores is not None else None
        if phase.chooses:
            course.standings[k], better[k] = observe(
                standing,
                course.epoch,
                None if dev is None else dev.mean,
                None if dev is None else dev.loss,
                select=group.config.select,
                patience=group.config.patience,
            )
        lines.append(
            {
                "fit": group.name,
                "expert": expert,
                "position": course.position(group.feed.rounds),
                "phase": phase.name,
                "epoch": course.epoch,
                "step": int(done[k]),
                "train_loss": float(sums[k] / steps[k]),
                "dev": None if dev is None else dev.mean,
                "dev_loss": None if dev is None else dev.loss,
                "metrics": {} if dev is None else dev.values,
                "kept": better[k],
                "tokens": course.tokens[k],
                "seconds": course.seconds,
            }
        )
    course.history += lines
    log.write(lines)
    if lines and scores is not None:
        bar.say(
            train_loss=float(np.mean([line["train_loss"] for line in lines])),
            dev=float(np.mean([line["dev"] for line in lines])),
        )
    return better


def _log_step(
    group: Group,
    phase: Phase,
    state: State,
    loss: jax.Array,
    fed: Fed,
    totals: np.ndarray,
    course: Course,
    log: MetricsLog,
    bar: ProgressBar,
) -> None:
    losses, done, rate = np.asarray(loss), np.asarray(state["step"]), bar.rate()
    bar.say(loss=float(losses.mean()), tokens_per_second=rate)
    log.write(
        [
            {
                "fit": group.name,
                "expert": expert,
                "position": course.position(group.feed.rounds),
                "phase": phase.name,
                "epoch": course.epoch,
                "step": int(done[k]),
                "loss": float(losses[k]),
                "learning_rate": float(_rate(phase.config, done[k] - 1, totals[k])),
                "tokens_per_second": rate,
            }
            for k, expert in enumerate(group.names)
            if course.inner <= group.feed.steps[k] and not course.standings[k].stopped
        ]
    )


@functools.partial(jax.jit, static_argnums=0)
def _rate(config: FitConfig, step: jax.Array, total: jax.Array) -> jax.Array:
    return learning_rate(config, step, total, config.learning_rate)


def _check_finite(group: Group, state: State, course: Course) -> None:
    """Raises `Diverged` for the experts that still train."""
    bad = [
        f"expert {expert!r} at step {int(step)} of {group.name!r}"
        for expert, step, standing in zip(
            group.names, np.asarray(state["bad_step"]), course.standings, strict=True
        )
        if step >= 0 and not standing.stopped
    ]
    if bad:
        raise Diverged(
            f"the loss or its gradient is not finite: {'; '.join(bad)} (epoch "
            f"{course.epoch}). Lower learning_rate (now {group.config.learning_rate}) "
            f"or clip_norm (now {group.config.clip_norm}), or check the parameters it "
            "started from"
        )


def expert_keys(seed: int, names: Sequence[str]) -> np.ndarray:
    """The key data of each expert's dropout, [K, 2] uint32, by its name alone."""
    key = jax.random.key(seed)
    keys = [jax.random.fold_in(key, zlib.crc32(name.encode())) for name in names]
    return np.stack([np.asarray(jax.random.key_data(key)) for key in keys])
