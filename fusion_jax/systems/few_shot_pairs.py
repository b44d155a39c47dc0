"""Models of kept sources tuned further on few labelled rows of their target.

Beside them the plain model on the same rows. Each is a small record named by all that
decides it, as in `cold_evaluation`: a run that was stopped goes on, and no model of a
pair is kept.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusion_jax import atomic
from fusion_jax.processes import agreed, on_own_device, write_once
from fusion_jax.systems.clocks import UNKNOWN, Stopwatch
from fusion_jax.systems.cold_tasks import few_rows
from fusion_jax.systems.experts import DIRECT, head_key
from fusion_jax.systems.identity import fit_identity
from fusion_jax.systems.judge import Judge
from fusion_jax.systems.problem import Problem, starting_params
from fusion_jax.systems.selection_setting import Setting, ready
from fusion_jax.systems.stages import stage_config
from fusion_jax.systems.workdir import content_hash
from fusion_jax.systems.zero_shot import (
    SHARED_HEAD,
    cell_identity,
    source_identity,
    source_model,
)
from fusion_jax.training.fit import fit
from fusion_jax.types import Params

Cells = dict[str, dict[str, Any]]
"""target -> 'score', 'values', 'rows' (labelled), 'seconds' (`clocks.Spent`)."""


def few_shot(
    setting: Setting, targets: Mapping[str, Sequence[str]]
) -> dict[str, Cells]:
    """Tunes every pair on the target's few rows and scores it on its test rows.

    Args:
      setting: tasks and options.
      targets: source -> targets; those of no source are tuned directly, too.

    Returns:
      source, and 'direct' for the plain model -> target -> cell.
    """
    problems = {
        name: ready(
            setting,
            few_rows(
                setting.problems[name].task,
                setting.config.few_shot,
                setting.config.seed,
            ),
        )
        for name in setting.names
    }
    found = {DIRECT: _of_source(setting, problems, DIRECT, setting.names)}
    for name, wanted in targets.items():
        if wanted:
            found[name] = _of_source(setting, problems, name, wanted)
    return found


def _of_source(
    setting: Setting,
    problems: Mapping[str, Problem],
    source: str,
    targets: Sequence[str],
) -> Cells:
    lineage = None if source == DIRECT else source_identity(setting, source)
    files = {t: _file(setting, problems[t], source, t, lineage) for t in targets}
    missing = [t for t in targets if not agreed(files[t].is_file)]
    if missing:
        start = _start(setting, problems[missing[0]], source)
        for target in missing:
            _tune(setting, problems[target], start, files[target])
    return {target: json.loads(file.read_text()) for target, file in files.items()}


def _start(setting: Setting, problem: Problem, source: str) -> Params:
    if source != DIRECT:
        return source_model(setting, source)
    key = head_key(SHARED_HEAD, setting.config.seed)
    return starting_params(problem, setting.encoder.params, setting.encoder.params, key)


def _file(
    setting: Setting, problem: Problem, source: str, target: str, lineage: str | None
) -> Path:
    options = stage_config(setting.config.few, setting.config, setting.config.seed)
    identity = content_hash(
        fit=fit_identity(problem, setting.encoder, options, head=SHARED_HEAD),
        source=lineage,
        test=cell_identity(setting, target),
    )
    return setting.folder / "few_shot" / f"{target}-from-{source}-{identity}.json"


def _tune(setting: Setting, problem: Problem, start: Params, file: Path) -> None:
    workdir = file.parent / "fits" / file.stem
    begun = agreed(workdir.is_dir)
    watch = Stopwatch()
    options = stage_config(setting.config.few, setting.config, setting.config.seed)
    tuned = fit(
        problem.model,
        start,
        problem.train_batches(options),
        problem.encoded["dev"],
        options,
        kind=problem.kind,
        metrics=problem.metrics,
        workdir=workdir,
        name=file.stem,
        progress=False,
    )
    spent = UNKNOWN if begun else watch.spent()
    scores = Judge(problem, setting.config.tokens_per_batch).scores(
        on_own_device(tuned.params), "test"
    )
    record = {
        "score": scores.mean,
        "values": scores.values,
        "rows": len(problem.encoded["train"]),
        "seconds": spent,
    }

    def write() -> None:
        atomic.write_json(file, record)
        shutil.rmtree(workdir, ignore_errors=True)

    write_once(str(file), write)
