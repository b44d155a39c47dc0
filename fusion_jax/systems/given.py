"""Experts that exist: directories of models fine-tuned on the target."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from fusion_jax import trees
from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.systems.problem import Problem
from fusion_jax.types import Params


def given_experts(
    sources: Sequence[str], encoder: str, problem: Problem
) -> dict[str, Params]:
    """Reads the experts and holds each against the target and the encoder.

    Args:
      sources: of each expert; see `huggingface.resolve`.
      encoder: what they were fine-tuned from, for messages.
      problem: the target, with a model of that encoder.

    Returns:
      name -> parameters. A name is the folder's, with its parent's where folders
      share one ('model', say).

    Raises:
      CheckpointError: no model there, a damaged one, or one for another kind of task.
      TreeMismatch: an expert of another structure than the encoder's; every leaf is
        listed.
      ValueError: an expert of other labels, or two of one name.
    """
    models = {}
    for name, source in zip(names_of(sources), sources, strict=True):
        loaded = hf.load(source, kind=problem.kind)
        if loaded.labels and loaded.labels != problem.task.labels:
            raise ValueError(
                f"experts: {source} has the labels {', '.join(loaded.labels)}, the "
                f"task {problem.task.name} has {', '.join(problem.task.labels)}; take "
                "experts of this task"
            )
        _check_structure(source, loaded.params, encoder, problem)
        models[name] = loaded.params
    return models


def names_of(sources: Sequence[str]) -> list[str]:
    """Names of folders: their own, with the parent's where folders share one."""
    paths = [Path(source).absolute() for source in sources]
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        names = ["-".join(path.parts[-2:]) for path in paths]
    if len(set(names)) < len(names):
        raise ValueError(
            f"experts: two of {', '.join(sources)} have one name; rename one"
        )
    return names


def _check_structure(
    source: str, params: Params, encoder: str, problem: Problem
) -> None:
    shapes = jax.eval_shape(problem.model.init, jax.random.key(0))
    wanted = {name: x.shape for name, x in trees.flatten(shapes).items()}
    given = {name: np.shape(x) for name, x in trees.flatten(params).items()}
    wrong = [
        f"{name}: {given.get(name, 'absent')} there, "
        f"{wanted.get(name, 'absent')} expected"
        for name in sorted(wanted.keys() | given.keys())
        # A pooler that the head does not read may come along.
        if given.get(name) != wanted.get(name)
        and (name in wanted or not name.startswith("encoder/pooler/"))
    ]
    if wrong:
        more = f"\n  and {len(wrong) - 12} more" if len(wrong) > 12 else ""
        raise trees.TreeMismatch(
            f"experts: {source} is no fine-tune of the encoder {encoder} on the task "
            f"{problem.task.name}; {len(wrong)} leaves differ:\n  "
            + "\n  ".join(wrong[:12])
            + f"{more}\nSet encoder to the model that all experts were fine-tuned "
            "from, and leave out experts of another."
        )
