"""Which sources to try for one target, without training: distances, ranks, a cut."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.data import Task, TaskError, load_task
from fusion_jax.data.tokenise import load_tokenizer
from fusion_jax.systems.selection_defaults import DEFAULT_MEASURE, FUSION
from fusion_jax.systems.selection_measures import (
    Measured,
    check_measures,
    measure_tasks,
    reads_states,
)
from fusion_jax.systems.selection_study import Line
from fusion_jax.transfer.ranking import kept_count


class Choice(NamedTuple):
    """Sources of one target, the nearest first.

    Attributes:
      target: its name.
      order: by which they are ranked: a measure, or 'fusion' of several.
      sources: names.
      distances: measure -> one for each source.
      left_out: name -> why it is not ranked.
      seconds: of reading and measuring.
    """

    target: str
    order: str
    sources: tuple[str, ...]
    distances: Mapping[str, tuple[float, ...]]
    left_out: Mapping[str, str]
    seconds: float


def rank_sources(
    target: Task,
    sources: Sequence[Task],
    measures: Sequence[str] = (),
    *,
    encoder: hf.Checkpoint,
    max_length: int = 128,
    seed: int = 0,
    cache: str | os.PathLike[str] | None = None,
) -> Choice:
    """Ranks sources for a target by what their texts are like.

    Args:
      target: with train; its labels are not looked at.
      sources: of other names than the target's.
      measures: of `selection_measures.AVAILABLE`, by whose rank fusion sources are
        ordered if they are several; empty = `DEFAULT_MEASURE`.
      encoder: whose tokenizer reads the texts, and whose states some measures read.
      max_length: tokens of a text that the encoder reads.
      seed: of draws.
      cache: folder that states are kept in.

    Raises:
      ValueError: no source can be compared with the target, or the target itself
        cannot; each is named.
    """
    chosen = tuple(dict.fromkeys(measures)) or (DEFAULT_MEASURE,)
    check_measures(chosen, "measure")
    names = [task.name for task in sources]
    if target.name in names:
        raise ValueError(
            f"sources: {target.name} is the target; a task is no source of itself"
        )
    measured = measure_tasks(
        [target, *sources],
        chosen,
        encoder=encoder if any(map(reads_states, chosen)) else None,
        tokenizer=load_tokenizer(encoder.path),
        max_length=max_length,
        seed=seed,
        cache=cache,
    )
    if target.name in measured.left_out:
        raise ValueError(
            f"target {target.name}: it cannot be compared with sources, "
            f"{measured.left_out[target.name]}"
        )
    return _choice(measured, target.name, chosen)


def read_folders(
    target: str | os.PathLike[str], sources: Sequence[str | os.PathLike[str]]
) -> tuple[Task, list[Task], dict[str, str]]:
    """The target's and the sources' task folders.

    Returns:
      (target, sources that can be read, name -> what is wrong with the others).

    Raises:
      TaskError: the target cannot be read, or no source can, or two are of one name.
    """
    read, wrong = [], {}
    for folder in sources:
        try:
            read.append(load_task(folder, use_partial=True))
        except (TaskError, UnicodeDecodeError, OSError) as error:
            wrong[Path(folder).resolve().name] = " ".join(str(error).split())
    if not read:
        told = "\n  ".join(f"{name}: {why}" for name, why in wrong.items())
        raise TaskError(f"no source can be read\n  {told}")
    return load_task(target, use_partial=True), read, wrong


def choice_record(choice: Choice, keep: float, line: Line | None) -> dict[str, Any]:
    """What `fusion-jax select --json` prints.

    Args:
      choice: of `rank_sources`.
      keep: fraction of the sources that is kept.
      line: of a study; None = gains are not known.
    """
    count = len(choice.sources)
    held = kept_count(count, keep)
    return {
        "target": choice.target,
        "order": choice.order,
        "keep": keep,
        "sources": [
            {
                "source": name,
                "rank": place + 1,
                "kept": place < held,
                "distances": {m: x[place] for m, x in choice.distances.items()},
                "expected_gain": line.at(place + 1, count) if line else None,
                "spread": line.spread if line else None,
            }
            for place, name in enumerate(choice.sources)
        ],
        "left_out": dict(choice.left_out),
        "study": line._asdict() if line else None,
        "seconds": choice.seconds,
    }


def _choice(measured: Measured, target: str, chosen: Sequence[str]) -> Choice:
    order = chosen[0] if len(chosen) == 1 else FUSION
    names = measured.names
    t = names.index(target)
    places = [s for s in range(len(names)) if s != t]
    places.sort(key=lambda s: measured.ranked[order][s, t])
    seconds = measured.seconds["wall"]
    kinds = [seconds[kind] for kind in ("terms", "states") if seconds[kind]]
    return Choice(
        target,
        order,
        tuple(names[s] for s in places),
        {
            name: tuple(float(table[s, t]) for s in places)
            for name, table in measured.distances.items()
        },
        measured.left_out,
        sum(kinds[-1].values()) + seconds["shared"] + sum(seconds["measures"].values()),
    )
