"""Models of sources, each trained once, and their scores on every target as they are.

The truth that divergences are held against. A source's model does not depend on the
target: S sources cost S trainings and S sweeps over the test rows of all targets. The
model and the row of scores of each source are files named by what they were made from,
so that a run that was stopped goes on where it stood.
"""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fusion_jax import atomic
from fusion_jax.data.encoded import Encoded, hash_encoded
from fusion_jax.evaluation.predictions import softmax
from fusion_jax.evaluation.readout import Readout
from fusion_jax.evaluation.scoring import score
from fusion_jax.processes import agreed, write_once
from fusion_jax.systems.clocks import UNKNOWN, Stopwatch
from fusion_jax.systems.experts import fitted_once, head_key
from fusion_jax.systems.identity import fit_identity
from fusion_jax.systems.judge import Judge
from fusion_jax.systems.problem import Problem, starting_params
from fusion_jax.systems.selection_setting import Setting
from fusion_jax.systems.stages import stage_config
from fusion_jax.systems.workdir import content_hash
from fusion_jax.training.config import FitConfig
from fusion_jax.types import Params

logger = logging.getLogger(__name__)

SHARED_HEAD = "shared"
"""What the head of all sources is drawn from, beside the seed."""

Row = dict[str, Any]
"""Of a source: 'train_seconds', and 'targets': name -> cell. A cell has 'score',
'values' (by metric), 'loss', 'confidence' (mean probability of the answers), 'rows',
'seconds', 'logits' (of each test row, so that another score needs no other run), and
'identity' of what was scored. Seconds are `clocks.Spent`."""


def zero_shot(setting: Setting, targets: Mapping[str, Sequence[str]]) -> dict[str, Row]:
    """The scores of sources' models on targets, and on their own test rows.

    Args:
      setting: tasks and options.
      targets: source -> targets that its model is tried on; one without any is not
        trained.

    Returns:
      source -> row, of the sources that were trained.
    """
    pools: dict[tuple[str, ...], Pool] = {}
    rows = {}
    trained = [name for name, wanted in targets.items() if wanted]
    for number, name in enumerate(trained):
        wanted = [t for t in setting.names if t == name or t in targets[name]]
        rows[name] = _row(setting, name, wanted, pools)
        scores = {t: cell["score"] for t, cell in rows[name]["targets"].items()}
        logger.info(
            "source %d of %d, %s: %.3f on its own test rows, %.3f over %d targets",
            number + 1,
            len(trained),
            name,
            scores.pop(name),
            np.mean(list(scores.values())),
            len(scores),
        )
    return rows


def source_model(setting: Setting, name: str) -> Params:
    """phi_s = Train(theta_0; D_s), the best epoch by its own dev; trained once."""
    problem, fit = setting.problems[name], _fit(setting)
    start = starting_params(
        problem,
        setting.encoder.params,
        setting.encoder.params,
        head_key(SHARED_HEAD, setting.config.seed),
    )
    folder = setting.folder / "experts"
    params = fitted_once(
        name, problem, setting.encoder, start, fit, folder, head=SHARED_HEAD
    )
    # Its train state is several times as large as the model, and done with.
    state = _state_of(setting, name, source_identity(setting, name))
    write_once(str(state), lambda: shutil.rmtree(state, ignore_errors=True))
    return params


def source_identity(setting: Setting, name: str) -> str:
    """Hash of all that a source's model is made from."""
    problem, fit = setting.problems[name], _fit(setting)
    return fit_identity(problem, setting.encoder, fit, head=SHARED_HEAD)


class Pool:
    """The test rows of several targets as one split: few shapes, and few passes."""

    def __init__(self, setting: Setting, names: Sequence[str]) -> None:
        """Joins the rows."""
        self._problems = {name: setting.problems[name] for name in names}
        tests = [p.encoded["test"] for p in self._problems.values()]
        self._ends = np.cumsum([0, *(len(test) for test in tests)])
        first = self._problems[names[0]]
        joined = replace(first, encoded={"test": _joined(tests)})
        self._judge = Judge(joined, setting.config.tokens_per_batch)

    def cells(self, params: Params) -> dict[str, dict[str, Any]]:
        """What a model says of every target: target -> cell."""
        watch = Stopwatch()
        readout = self._judge.readout(params, "test")
        rows_in_all = int(self._ends[-1])
        spent = {n: watch.spent(n / rows_in_all) for n in set(np.diff(self._ends))}
        found = {}
        for place, (name, problem) in enumerate(self._problems.items()):
            rows = slice(self._ends[place], self._ends[place + 1])
            cell = _cell(problem, {k: x[rows] for k, x in readout.items()})
            found[name] = {**cell, "seconds": spent[cell["rows"]]}
        return found


def _row(
    setting: Setting,
    name: str,
    targets: Sequence[str],
    pools: dict[tuple[str, ...], Pool],
) -> Row:
    identity = source_identity(setting, name)
    file = setting.folder / "zero_shot" / f"{name}-{identity}.json"
    row: Row = {"source": name, "train_seconds": None, "targets": {}}
    if agreed(file.is_file):
        row = json.loads(file.read_text())
    known = row["targets"]
    missing = tuple(
        t
        for t in targets
        if known.get(t, {}).get("identity") != cell_identity(setting, t)
    )
    if missing:
        params = _timed_model(setting, name, identity, row)
        if missing not in pools:
            pools[missing] = Pool(setting, missing)
        found = pools[missing].cells(params)
        for t, cell in found.items():
            known[t] = {**cell, "identity": cell_identity(setting, t)}
        write_once(str(file), lambda: atomic.write_json(file, row))
    return {**row, "targets": {t: known[t] for t in targets}}


def _timed_model(setting: Setting, name: str, identity: str, row: Row) -> Params:
    """The model; what its training took goes into the row, and stays beside it."""
    timing = setting.folder / "experts" / f"{name}-{identity}.json"
    model = timing.with_suffix(".safetensors")
    state = _state_of(setting, name, identity)
    # A run that was stopped has trained some of it: what is left is not its time.
    begun = agreed(lambda: model.is_file() or state.is_dir())
    watch = Stopwatch()
    params = source_model(setting, name)
    if not agreed(timing.is_file):
        seconds = {"train_seconds": UNKNOWN if begun else watch.spent()}
        write_once(str(timing), lambda: atomic.write_json(timing, seconds))
    row |= json.loads(timing.read_text())
    return params


def _state_of(setting: Setting, name: str, identity: str) -> Path:
    """Where `fitted_once` keeps the train state of a source."""
    return setting.folder / "experts" / "fits" / f"{name}-{identity}"


def cell_identity(setting: Setting, target: str) -> str:
    """Hash of the test rows of a target and how they are scored."""
    problem = setting.problems[target]
    return content_hash(
        test=hash_encoded(problem.encoded["test"]),
        metrics=problem.metrics,
        dtype=setting.config.dtype,
    )


def _cell(problem: Problem, readout: Readout) -> dict[str, Any]:
    encoded = problem.encoded["test"]
    scores = score(readout, encoded, problem.metrics)
    logits = np.asarray(readout["logits"], np.float64)
    likely = softmax(logits).max(axis=-1)
    if problem.kind == "multi_label":
        # Each class is a yes or no of its own.
        likely = softmax(np.stack([logits, 0 * logits], axis=-1)).max(axis=-1)
    return {
        "score": scores.mean,
        "values": scores.values,
        "loss": scores.loss,
        "confidence": float(likely.mean()),
        "rows": len(encoded),
        "logits": logits.round(3).tolist(),
    }


def _joined(splits: Sequence[Encoded]) -> Encoded:
    """Splits of one label space as one, one row an item."""

    def along(parts: Sequence[Mapping[str, Any]], join: Any) -> dict[str, Any]:
        return {name: join([part[name] for part in parts]) for name in parts[0]}

    return replace(
        splits[0],
        task_name="all targets",
        columns=along(
            [x.columns for x in splits], lambda found: [row for x in found for row in x]
        ),
        targets=along([x.targets for x in splits], np.concatenate),
        lengths=np.concatenate([x.lengths for x in splits]),
        items=np.arange(sum(map(len, splits))),
        references=[answer for x in splits for answer in x.references],
    )


def _fit(setting: Setting) -> FitConfig:
    return stage_config(setting.config.fit, setting.config, setting.config.seed)
