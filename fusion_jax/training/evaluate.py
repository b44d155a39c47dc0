"""Dev scores of the experts of a stack while they train."""

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from fusion_jax.data.batches import eval_batches
from fusion_jax.evaluation.readout import collect, readout
from fusion_jax.evaluation.scoring import Scores, score
from fusion_jax.training.sharding import batch_shardings, place, replicated
from fusion_jax.training.step import over_experts
from fusion_jax.trees import combine
from fusion_jax.types import Batch, Model, Params, ParamStack

if TYPE_CHECKING:  # the tokenisers' library is not needed here
    from fusion_jax.data.tokenise import Encoded

TOKENS_PER_BATCH = 4096


class DevScore(NamedTuple):
    """One expert on its dev set: metric values, their mean, the mean loss."""

    values: dict[str, float]
    mean: float
    loss: float


DevJudge = Callable[[Params], DevScore]
"""Scores whole parameters of one expert; says what rows of one kind cannot."""


class Judged:
    """One expert scored by a function, in the place of dev rows."""

    def __init__(self, judge: DevJudge):
        """Takes the function."""
        self._judge = judge

    def score(
        self, params: ParamStack, held: ParamStack, shared: Params
    ) -> list[DevScore]:
        """The score of the only expert of a stack; see `DevSets.score`."""
        own = jax.tree.map(lambda x: x[0], (params, held))
        return [self._judge(combine(*own, shared))]


class DevSets:
    """The dev sets of K experts, on the device once for all epochs.

    Experts that share one dev set are read out in one program; those with their own
    are read out one after another by one program that picks an expert of the stack.
    """

    def __init__(
        self,
        model: Model,
        kind: str,
        devs: Sequence["Encoded"],
        *,
        metrics: Sequence[str],
        num_labels: int | None,
        buckets: Sequence[int],
        mesh: Mesh,
    ):
        """Batches the dev sets and places them.

        Args:
          model: whose outputs are scored.
          kind: kind of the task.
          devs: K dev sets.
          metrics: names of the metrics; their mean is the score.
          num_labels: columns that targets are padded to; None = their own.
          buckets: lengths that rows are padded to.
          mesh: rows are spread over 'data'.
        """
        self._metrics = tuple(metrics)
        self._devs = list(devs)
        self._one = all(dev is devs[0] for dev in devs)
        self._batches: list[list[tuple[np.ndarray, Batch]]] = []
        for dev in devs[:1] if self._one else devs:
            batches = eval_batches(
                dev,
                tokens_per_batch=TOKENS_PER_BATCH,
                buckets=buckets,
                num_labels=num_labels,
            )
            self._batches.append(
                [
                    (np.asarray(b["index"]), place(b, batch_shardings(b, mesh)))
                    for b in batches
                ]
            )
        self._read_all = _read_all(model.apply, kind, len(self._devs), mesh)
        self._read_one = _read_one(model.apply, kind, mesh)

    def score(
        self, params: ParamStack, held: ParamStack, shared: Params
    ) -> list[DevScore]:
        """The scores of all K experts, as a fit chooses by them.

        Args:
          params: trained leaves [K, ...].
          held: other leaves [K, ...].
          shared: leaves [...] of all experts.
        """
        return [
            DevScore(scores.values, scores.mean, scores.loss)
            for scores in self.scores(params, held, shared)
        ]

    def scores(
        self, params: ParamStack, held: ParamStack, shared: Params
    ) -> list[Scores]:
        """As `score`, with what is known of every item."""
        if self._one:
            pieces = [
                (index, self._read_all(params, held, shared, batch))
                for index, batch in self._batches[0]
            ]
            whole = collect(pieces, len(self._devs[0]), leading=1)
            readouts = [
                {name: x[k] for name, x in whole.items()}
                for k in range(len(self._devs))
            ]
        else:
            readouts = []
            for k, (dev, batches) in enumerate(
                zip(self._devs, self._batches, strict=True)
            ):
                expert = np.int32(k)
                pieces = [
                    (index, self._read_one(params, held, shared, batch, expert))
                    for index, batch in batches
                ]
                readouts.append(collect(pieces, len(dev)))
        return [
            score(kept, dev, self._metrics)
            for kept, dev in zip(readouts, self._devs, strict=True)
        ]


# Kept for the whole process: the next fit of the same model does not compile them.
@functools.lru_cache(maxsize=32)
def _read_all(
    apply: Callable[..., Any], kind: str, size: int, mesh: Mesh
) -> Callable[..., Any]:
    """(params, held, shared, batch) -> readouts [K, B, ...] of all experts."""

    def one(params: Params, held: Params, shared: Params, batch: Batch) -> Any:
        outputs = apply(combine(params, held, shared), batch)
        return readout(kind, outputs, batch)

    everywhere: Any = replicated(mesh)
    program = over_experts(one, size, (0, 0, None, None))
    return jax.jit(program, out_shardings=everywhere)


@functools.lru_cache(maxsize=32)
def _read_one(apply: Callable[..., Any], kind: str, mesh: Mesh) -> Callable[..., Any]:
    """(params, held, shared, batch, k) -> readouts [B, ...] of expert k."""

    def picked(
        params: ParamStack, held: ParamStack, shared: Params, batch: Batch, k: Any
    ) -> Any:
        own = jax.tree.map(lambda x: x[k], (params, held))
        return readout(kind, apply(combine(*own, shared), batch), batch)

    everywhere: Any = replicated(mesh)
    return jax.jit(picked, out_shardings=everywhere)
