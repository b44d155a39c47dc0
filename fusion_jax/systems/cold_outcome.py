"""results.json of ColD Fusion: groups of tasks, gains over the base, rounds."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from fusion_jax.checkpoints.manifests import BaseManifest
from fusion_jax.collaboration.repository import Repository
from fusion_jax.reports.summary import summarise
from fusion_jax.systems.cold_evaluation import FEW_SHOT, FINETUNED, FROZEN
from fusion_jax.systems.cold_scores import Evaluations, group_entry, mean_entry
from fusion_jax.systems.cold_setting import Setting
from fusion_jax.systems.cold_tasks import Fold
from fusion_jax.systems.outcome import SCHEMA_VERSION, versions

SYSTEM = "cold_fusion"

BASE = "base"
METHODS = tuple(
    f"{name}{ending}"
    for name in (BASE, "cold", "one_shot", "multitask")
    for ending in ("", "_frozen")
)
"""Bases, each fine-tuned and frozen, in the order of a record."""

GROUPS = ("seen", "unseen", "few_shot")

# What `evaluations` of the rounds hold already.
_OWN = (BASE, "cold")


def cold_results(
    setting: Setting,
    fold: Fold,
    repository: Repository,
    evaluations: Sequence[Evaluations],
    found: Mapping[str, Evaluations],
    *,
    baseline_seconds: Mapping[str, float],
) -> dict[str, Any]:
    """The record of one fold and seed.

    Args:
      setting: tasks and options.
      fold: who contributes.
      repository: with all rounds.
      evaluations: of the base of each round.
      found: 'base', 'cold' and baselines -> evaluations.
      baseline_seconds: of making the baselines.
    """
    history = repository.history()[: setting.config.rounds + 1]
    drawn = [[part.task for part in base.parts] for base in history[1:]]
    metrics = {" + ".join(p.metrics) for p in setting.problems.values()}
    return {
        "schema_version": SCHEMA_VERSION,
        "system": SYSTEM,
        "target": fold.name,
        "metric": ", ".join(sorted(metrics)),
        "seed": setting.seed,
        "methods": method_entries(found, fold.seen, fold.unseen, setting.tiny),
        "rounds": [
            {
                **_round(base),
                "scores": round_scores(scores, fold.seen, fold.unseen),
            }
            for base, scores in zip(history, evaluations, strict=True)
        ],
        "tasks": {
            name: {
                "group": "seen" if name in fold.seen else "unseen",
                "kind": problem.kind,
                "labels": problem.task.num_labels,
                "rows": {s: len(x) for s, x in problem.task.splits.items()},
                "rows_before_cut": setting.rows[name],
                "tiny": name in setting.tiny,
                "contributed": sum(name in names for names in drawn),
            }
            for name, problem in setting.problems.items()
        },
        "repository": repository.url,
        "coefficients": None,
        "experts": None,
        "candidates": None,
        "seconds": _seconds(repository, history, evaluations, found)
        | dict(baseline_seconds),
        "versions": versions(),
        "config": json.loads(setting.config.to_json()),
    }


def _round(base: BaseManifest) -> dict[str, Any]:
    """A base as its manifest has it: from whom it came, and what was left out."""
    return {
        "round": base.round,
        "base": base.weights.sha256,
        "contributors": [part.contributor for part in base.parts]
        + [rejected.contributor for rejected in base.rejected],
        "accepted": [part.contributor for part in base.parts],
        "rejected": [
            {"contributor": x.contributor, "reasons": list(x.reasons)}
            for x in base.rejected
        ],
        "memory": dict(base.memory),
        "seconds": {name: round(x, 3) for name, x in base.seconds.items()},
    }


def _seconds(
    repository: Repository,
    history: Sequence[BaseManifest],
    evaluations: Sequence[Evaluations],
    found: Mapping[str, Evaluations],
) -> dict[str, float]:
    """Of every part, over all starts of the run: records and manifests hold them."""
    trained = [
        repository.contribution(part.manifest).manifest
        for base in history
        for part in base.parts
    ]
    told = [float(m.scores.get("seconds", 0)) for m in trained if m is not None]
    seconds = {
        "contributors": sum(told),
        "fuse": sum(sum(base.seconds.values()) for base in history),
    }
    bases = [*evaluations, *(found[name] for name in found if name not in _OWN)]
    for way in (FINETUNED, FROZEN, FEW_SHOT):
        seconds[f"evaluate_{way}"] = sum(
            record["seconds"] for base in bases for record in base.get(way, {}).values()
        )
    return {name: round(x, 2) for name, x in seconds.items()}


def method_entries(
    found: Mapping[str, Evaluations],
    seen: Sequence[str],
    unseen: Sequence[str],
    tiny: Collection[str],
) -> dict[str, Any]:
    """The record of every method.

    Args:
      found: base's name -> its evaluations; a baseline that was left out is absent.
      seen: tasks that contribute.
      unseen: tasks that do not.
      tiny: tasks that second averages leave out.

    Returns:
      name of `METHODS` -> 'dev', 'test', 'test_interval' (of all tasks), and an entry
      or null for each of `GROUPS`.
    """
    entries = {}
    for name in METHODS:
        mode = FROZEN if name.endswith("_frozen") else FINETUNED
        place = name.removesuffix("_frozen")
        ways = found.get(place, {})
        plain = found[BASE] if place != BASE else {}

        def part(
            way: str, tasks: Sequence[str], ways: Any = ways, plain: Any = plain
        ) -> dict[str, Any] | None:
            mine = {task: ways[way][task] for task in tasks if way in ways}
            other = {task: plain[way][task] for task in tasks if way in plain}
            return group_entry(mine, other or None, tiny)

        whole = ways.get(mode, {})
        total = mean_entry(whole) if whole else dict.fromkeys(("score", "interval"))
        devs = [record["dev"] for record in whole.values()]
        entries[name] = {
            "dev": float(np.mean(devs)) if devs else None,
            "test": total["score"],
            "test_interval": total["interval"],
            "seen": part(mode, seen),
            "unseen": part(mode, unseen),
            FEW_SHOT: part(FEW_SHOT, unseen) if mode == FINETUNED else None,
        }
    return entries


def round_scores(
    evaluations: Evaluations, seen: Sequence[str], unseen: Sequence[str]
) -> dict[str, Any]:
    """Mean test scores of a base: way -> group -> score, null for what was not done."""
    scores: dict[str, Any] = {}
    for way in (FINETUNED, FROZEN):
        records = evaluations.get(way, {})
        scores[way] = {
            group: mean_entry({n: records[n] for n in names})["score"]
            if records and names
            else None
            for group, names in (("seen", seen), ("unseen", unseen))
        }
    few = evaluations.get(FEW_SHOT, {})
    scores[FEW_SHOT] = mean_entry(few)["score"] if few else None
    return scores


def many_results(
    runs: Sequence[dict[str, Any]], config: dict[str, Any]
) -> dict[str, Any]:
    """The record of all folds and seeds, with means of every group over them."""
    return {
        "schema_version": SCHEMA_VERSION,
        "system": SYSTEM,
        "runs": list(runs),
        "summary": summarise(runs),
        "groups": groups_over_runs(runs),
        "versions": versions(),
        "config": config,
    }


def groups_over_runs(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Method -> group -> mean over runs, their spread, and the mean gain.

    Only of runs that have the method and the group; 'runs' says how many.
    """
    found: dict[str, Any] = {}
    for name in METHODS:
        found[name] = {}
        for group in GROUPS:
            entries = [run["methods"][name][group] for run in runs]
            known = [entry for entry in entries if entry]
            scores = [entry["score"] for entry in known]
            gains = [entry["gain"]["mean"] for entry in known if entry["gain"]]
            found[name][group] = {
                "score": float(np.mean(scores)) if scores else None,
                "spread": float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
                "gain": float(np.mean(gains)) if gains else None,
                "runs": len(known),
            }
    return found
