"""Hidden states of two hosts over the same tokens, for ports between widths."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.checkpoints.huggingface import Checkpoint
from fusion_jax.models import build_model
from fusion_jax.peft.port_host import Host, Seen
from fusion_jax.systems.portability_setting import Setting
from fusion_jax.systems.problem import Problem
from fusion_jax.types import Batch, Params


def with_states(setting: Setting, name: str, other: str, task: str) -> Host:
    """A host with what its layers say of unlabelled training text.

    Args:
      setting: of the study.
      name: the host.
      other: that it is to be compared with.
      task: whose training rows of the receiver are read, up to `port.tokens` tokens.

    Raises:
      ValueError: the two hosts make other tokens of one text.
    """
    problem = setting.problem(name, task, receiver=True)
    theirs = setting.problem(other, task, receiver=True)
    ours, others = (p.encoded["train"].columns["input_ids"] for p in (problem, theirs))
    if not all(map(np.array_equal, ours, others)):
        raise ValueError(
            f"hosts {name} and {other} make other tokens of one text, so their hidden "
            "states cannot be compared; set port.width to 'subspace', or take hosts "
            "of one tokenizer"
        )
    states = setting.once(
        ("states", name, task),
        lambda: states_of(
            problem,
            setting.hosts[name],
            setting.whole(name, task, 0),
            setting.config.port.tokens,
        ),
    )
    return setting.host(name)._replace(states=states)


def states_of(
    problem: Problem, host: Checkpoint, params: Params, tokens: int
) -> dict[str, Seen]:
    """What every linear layer of a host reads and writes over training rows.

    Args:
      problem: whose training rows are read, in their order.
      host: for its shape.
      params: the host with a head.
      tokens: about how many real tokens.

    Returns:
      layer path -> `Seen` [N, ...] of the real tokens; of the first tokens alone where
      a layer sees no others.
    """
    # Every token of the last layer too, whatever the head reads.
    model = build_model(
        host.config,
        problem.kind,
        max(problem.task.num_labels, 1),
        dtype=jnp.float32,
        every_token=True,
    )
    encoded = problem.encoded["train"]
    rows = int(np.searchsorted(np.cumsum(encoded.lengths), tokens)) + 1
    part = encoded.take(np.arange(min(rows, len(encoded))))
    pieces: dict[str, list[Seen]] = {}
    for batch in problem.batches_of(part, 2048):
        for path, seen in _seen(model.apply, params, batch).items():
            pieces.setdefault(path, []).append(seen)
    return {
        path: Seen(*(np.concatenate(side) for side in zip(*found, strict=True)))
        for path, found in pieces.items()
    }


def _seen(apply: Any, params: Params, batch: Batch) -> dict[str, Seen]:
    @jax.jit
    def run(params: Params, batch: Batch) -> dict[str, tuple[Any, Any]]:
        found: dict[str, tuple[Any, Any]] = {}

        def tap(name: str, x: jax.Array, y: jax.Array) -> None:
            found[name.removesuffix("/kernel")] = x, y

        apply(params, batch, tap=tap)
        return found

    real = np.asarray(batch["mask"]) > 0
    words = (np.asarray(batch["attention_mask"]) > 0) & real[:, None]

    def kept(x: Any) -> np.ndarray:
        x = np.asarray(x, np.float32)
        return x[words] if x.ndim == 3 and x.shape[1] == words.shape[1] else x[real]

    return {
        path: Seen(*(kept(side).reshape(-1, side.shape[-1]) for side in sides))
        for path, sides in run(dict(params), dict(batch)).items()
    }
