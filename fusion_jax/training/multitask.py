"""Several tasks in one training: a shared encoder, one head for each task.

Heads of one kind are stacked and padded to a common label count, and a batch names
its head by a number; so the step is compiled once for each kind and length, not once
for each task.
"""

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from fusion_jax import trees
from fusion_jax.data.batches import TrainBatches
from fusion_jax.evaluation.losses import kind_of
from fusion_jax.types import Batch, Key, Model, Outputs, Params


def multitask_model(models: Mapping[str, Model]) -> Model:
    """One model over the batches of several kinds of task.

    Its parameters are {'encoder': ..., 'head': {kind: stack [n, ...]}}, where n is
    the number of tasks of that kind; 'task' of a batch picks one of them.

    Args:
      models: kind -> model of one encoder config.

    Returns:
      A model without stages, for training alone.
    """

    def apply(
        params: Params, batch: Batch, *, dropout_key: Key | None = None
    ) -> Outputs:
        kind = kind_of(batch)
        head = jax.tree.map(lambda x: x[batch["task"]], params["head"][kind])
        return models[kind].apply(
            {"encoder": params["encoder"], "head": head},
            batch,
            dropout_key=dropout_key,
        )

    def init(key: Key) -> Params:
        raise TypeError("build the parameters of a multi-task model by join_heads")

    return Model(init=init, apply=apply, stages=())


def join_heads(params: Mapping[str, Params], kinds: Mapping[str, str]) -> Params:
    """Parameters of `multitask_model` from those of each task.

    Args:
      params: task -> {'encoder', 'head'}; the encoder leaves of all tasks are those
        of one pretrained model, and a leaf that only some kinds have (the pooler) is
        taken from these.
      kinds: task -> kind.

    Returns:
      {'encoder': ..., 'head': {kind: tree of [n, ...]}}.
    """
    encoder: dict[str, jax.Array] = {}
    for tree in params.values():
        encoder = trees.flatten(tree["encoder"]) | encoder
    heads = {
        kind: trees.stack(
            [params[t]["head"] for t in params if kinds[t] == kind],
            [t for t in params if kinds[t] == kind],
        )
        for kind in dict.fromkeys(kinds.values())
    }
    return {"encoder": trees.unflatten(encoder), "head": heads}


def part_heads(heads: Params, kinds: Mapping[str, str]) -> dict[str, Params]:
    """The heads of `join_heads`, by task: the inverse of its stacking.

    Args:
      heads: {kind: tree of [n, ...]}.
      kinds: task -> kind, in the order given to `join_heads`.
    """
    places = _place_in_kind(list(kinds.values()))
    return {
        task: jax.tree.map(lambda x, p=place: x[p], heads[kind])
        for (task, kind), place in zip(kinds.items(), places, strict=True)
    }


class MixedBatches:
    """Batches of several tasks in one shuffled order, a pure function of the step.

    Every batch of every task comes once an epoch; the order is a random permutation,
    so that the next task is drawn in proportion to the batches it has left.

    Attributes:
      steps_per_epoch: batches of all tasks together.
      batch_size: rows of each batch.

    Reference: Albalak et al. 2022, arXiv:2205.06262, multi-task training.
    """

    def __init__(
        self,
        members: Mapping[str, TrainBatches],
        kinds: Mapping[str, str],
        *,
        seed: int,
    ):
        """Members are batches of each task, of one batch size."""
        self._members = list(members.values())
        self._places = _place_in_kind([kinds[name] for name in members])
        self._seed = seed
        self.batch_size = self._members[0].batch_size
        self._counts = [member.steps_per_epoch for member in self._members]
        self.steps_per_epoch = sum(self._counts)

    def batch(self, step: int) -> Batch:
        """The batch of a step, with 'task', the place of its head, as an int32."""
        epoch, position = divmod(int(step), self.steps_per_epoch)
        generator = np.random.Generator(np.random.PCG64([self._seed, epoch]))
        order = generator.permutation(
            np.repeat(np.arange(len(self._counts)), self._counts)
        )
        task = int(order[position])
        earlier = int(np.sum(order[:position] == task))
        inner = epoch * self._counts[task] + earlier
        batch = dict(self._members[task].batch(inner))
        return {**batch, "task": np.int32(self._places[task])}


def _place_in_kind(kinds: Sequence[str]) -> list[int]:
    return [list(kinds[:i]).count(kind) for i, kind in enumerate(kinds)]
