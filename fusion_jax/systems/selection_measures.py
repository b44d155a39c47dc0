"""How far tasks are from each other, by every measure, and the orders that follow."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fusion_jax import atomic
from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.data import Task
from fusion_jax.data.encoded import hash_encoded
from fusion_jax.processes import agreed, write_once
from fusion_jax.systems.clocks import CLOCKS, Spent, Stopwatch, rescaled
from fusion_jax.systems.selection_defaults import FUSION
from fusion_jax.systems.workdir import content_hash
from fusion_jax.transfer.corpora import Corpora, read_corpora
from fusion_jax.transfer.ranking import fused_ranks, ranks
from fusion_jax.transfer.represent import STATE_READS, TERM_READS, represent
from fusion_jax.transfer.study import measure_all
from fusion_jax.transfer.table import MEASURES

AVAILABLE = tuple(
    name
    for name, measure in MEASURES.items()
    if measure.reads in (*TERM_READS, *STATE_READS)
)
"""Measures that need no more than texts and the pretrained encoder."""


class Measured(NamedTuple):
    """N tasks, and how near each source is to each target. Row s, column t.

    Attributes:
      names: of the tasks.
      distances: measure -> [N, N], smaller is closer.
      ranked: measure, and 'fusion' of several -> [N, N], 1 = closest, 0 on the
        diagonal.
      left_out: name -> why it is in no table.
      seconds: clock -> 'terms' and 'states', task -> seconds of its representation for
        measures on terms alone, and for those on states; 'measures', measure -> seconds
        of all pairs; 'shared', of what measures on states have in common. Where
        representations were found again, theirs are of the first time.
      budget: tokens of each task that distributions are of.
      texts: of each task that samples are of.
      controls: measures that stand beside those asked for: no fusion has them.
    """

    names: tuple[str, ...]
    distances: Mapping[str, np.ndarray]
    ranked: Mapping[str, np.ndarray]
    left_out: Mapping[str, str]
    seconds: Mapping[str, Any]
    budget: int
    texts: int
    controls: tuple[str, ...] = ()

    @property
    def asked(self) -> tuple[str, ...]:
        """The measures that are fused and learned of."""
        return tuple(name for name in self.distances if name not in self.controls)


def measure_tasks(
    tasks: Sequence[Task],
    measures: Sequence[str],
    *,
    encoder: hf.Checkpoint | None,
    tokenizer: Any,
    controls: Sequence[str] = (),
    layers: str | int = "last",
    texts: int = 200,
    budget: int = 0,
    max_length: int = 128,
    seed: int = 0,
    cache: str | os.PathLike[str] | None = None,
) -> Measured:
    """Represents tasks by their training texts and measures all pairs.

    Args:
      tasks: with train; labels are not looked at, but for the count of classes.
      measures: of `AVAILABLE`; empty = all, without an encoder all on terms.
      encoder: for measures that read its states; not used without one of them.
      tokenizer: of the encoder.
      controls: measures to rank by beside those, if they are not among them.
      layers: whose states are read.
      texts: of a task for samples.
      budget: tokens of a task for distributions, 0 = as many as the smallest has.
      max_length: tokens of a text that the encoder reads.
      seed: of draws.
      cache: folder that states are kept in.

    Raises:
      ValueError: unknown measures, or fewer than two tasks that can be compared.
    """
    check_measures((*measures, *controls))
    asked = tuple(dict.fromkeys(measures)) or tuple(
        name for name in AVAILABLE if encoder is not None or not reads_states(name)
    )
    beside = tuple(name for name in controls if name not in asked)
    chosen = (*asked, *beside)
    watch = Stopwatch()
    corpora = read_corpora(
        tasks, tokenizer, budget=budget, texts=texts, max_length=max_length, seed=seed
    )
    reading = watch.spent(1 / len(tasks))
    watch = Stopwatch()
    represented = represent(corpora)
    taken = {"terms": _by_clock(reading, represented.seconds, watch.spent())}
    if any(map(reads_states, chosen)):
        watch = Stopwatch()
        represented = represent(corpora, encoder, layers=layers, cache=cache)
        taken["states"] = _by_clock(reading, represented.seconds, watch.spent())
    if cache is not None:
        taken = _first_time(Path(cache), corpora, encoder, layers, taken)
    watch = Stopwatch()
    # The ledger asks for the seconds of each.
    study = measure_all(represented, chosen, seed=seed, apart=True)
    whole = watch.spent()
    seconds = {
        clock: {
            "terms": taken["terms"][clock],
            "states": taken["states"][clock] if "states" in taken else None,
            "measures": rescaled(study.seconds, whole, clock),
            **rescaled({"shared": study.shared_seconds}, whole, clock),
        }
        for clock in CLOCKS
    }
    names = represented.names
    ranked = {name: ranks(table, names) for name, table in study.distances.items()}
    if len(asked) > 1:
        fused = {name: study.distances[name] for name in asked}
        ranked[FUSION] = fused_ranks(fused, names)
    return Measured(
        names,
        study.distances,
        ranked,
        represented.left_out,
        seconds,
        corpora.budget,
        corpora.texts,
        beside,
    )


def measuring_seconds(measured: Measured, measures: Sequence[str], clock: str) -> float:
    """What an order by these measures takes: representations, and all pairs."""
    seconds = measured.seconds[clock]
    states = any(map(reads_states, measures))
    return (
        sum(seconds["states" if states else "terms"].values())
        + (seconds["shared"] if states else 0.0)
        + sum(seconds["measures"][name] for name in measures)
    )


Taken = dict[str, dict[str, dict[str, float]]]
"""'terms' and 'states' -> clock -> task -> seconds."""


def _by_clock(
    reading: Spent, parts: Mapping[str, float], whole: Spent
) -> dict[str, dict[str, float]]:
    """What the reading and representation of each task took, by both clocks."""
    return {
        clock: {
            name: (reading[clock] or 0.0) + x
            for name, x in rescaled(parts, whole, clock).items()
        }
        for clock in CLOCKS
    }


def _first_time(
    cache: Path,
    corpora: Corpora,
    encoder: hf.Checkpoint | None,
    layers: str | int,
    taken: Taken,
) -> Taken:
    """The seconds of the run that computed what this one may have found."""
    identity = content_hash(
        tasks={c.name: hash_encoded(c.inputs) for c in corpora.kept},
        amounts=[corpora.budget, corpora.texts],
        encoder=None if encoder is None else encoder.sha256,
        layers=layers,
        kinds=list(taken),
    )
    file = cache / f"seconds-{identity}.json"
    if not agreed(file.is_file):
        write_once(str(file), lambda: atomic.write_json(file, taken))
    return json.loads(file.read_text())


def reads_states(measure: str) -> bool:
    """Whether a measure needs an encoder's states."""
    return MEASURES[measure].reads in STATE_READS


def check_measures(measures: Sequence[str], option: str = "measures") -> None:
    """Raises ValueError with all names that are not among `AVAILABLE`."""
    unknown = [name for name in measures if name not in AVAILABLE]
    if unknown:
        raise ValueError(
            f"{option}: {', '.join(unknown)} unknown; there are {', '.join(AVAILABLE)}"
        )
