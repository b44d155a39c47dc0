"""results.json of a DFWE run, and of several; a method that was not run is null."""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fusion_jax.evaluation.bootstrap import interval, resample
from fusion_jax.evaluation.scoring import Scores
from fusion_jax.reports.methods import METHODS
from fusion_jax.reports.summary import summarise
from fusion_jax.search.answer import Answer
from fusion_jax.search.points import Points
from fusion_jax.systems.experts import DIRECT
from fusion_jax.systems.problem import Problem
from fusion_jax.version import __version__

SCHEMA_VERSION = 1

SplitScores = Mapping[str, Scores | None]


def dfwe_results(
    *,
    config: dict[str, Any],
    problem: Problem,
    seed: int,
    scores: Mapping[str, SplitScores],
    experts: Sequence[str],
    points: Points,
    chosen: np.ndarray,
    answer: Answer,
    without: Mapping[str, float | None],
    candidates: int,
    evaluated: int,
    plan: str,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """The record of one target and seed.

    Args:
      config: plain values.
      problem: the target.
      seed: of the run.
      scores: split -> method or 'expert:NAME' -> scores.
      experts: their names.
      points: what was interpolated.
      chosen: [G, K] coefficients of the merged model.
      answer: how they were chosen.
      without: point -> dev score of the merge without it.
      candidates: evaluated by the search, warm points included.
      evaluated: on dev in all, comparators and pictures included.
      plan: how the population was evaluated.
      seconds: of each stage.
    """
    methods = {name: _entry(name, scores, experts) for name in METHODS}
    return {
        "schema_version": SCHEMA_VERSION,
        "system": "dfwe",
        "target": problem.task.name,
        "metric": " + ".join(problem.metrics),
        "seed": seed,
        "methods": methods,
        "coefficients": _coefficients(points, chosen),
        "experts": {
            name: {
                split: _mean(scores, split, f"expert:{name}")
                for split in ("dev", "test")
            }
            for name in experts
        },
        "answer": {
            "chosen": answer.name,
            "advantage_over_mean": {
                name: {"difference": gain, "standard_error": error}
                for name, (gain, error) in answer.advantages.items()
            },
        },
        "dev_without": dict(without),
        "candidates": candidates,
        "dev_evaluations": evaluated,
        "rows": {split: len(rows) for split, rows in problem.task.splits.items()},
        "population": plan,
        "seconds": dict(seconds),
        "versions": versions(),
        "config": config,
    }


def many_results(
    runs: Sequence[dict[str, Any]], config: dict[str, Any]
) -> dict[str, Any]:
    """The record of several targets or seeds: 'runs', and their 'summary'."""
    return {
        "schema_version": SCHEMA_VERSION,
        "system": "dfwe",
        "runs": list(runs),
        "summary": summarise(runs),
        "versions": versions(),
        "config": config,
    }


def versions() -> dict[str, str]:
    """Of the project, of what computes, and the machine."""
    found = {"fusion_jax": __version__, "python": platform.python_version()}
    for package in ("jax", "flax", "optax", "evosax", "transformers", "numpy"):
        found[package] = importlib.metadata.version(package)
    device = jax.devices()[0]
    found["device"] = f"{jax.device_count()} x {device.device_kind}"
    return found


def _entry(
    name: str, scores: Mapping[str, SplitScores], experts: Sequence[str]
) -> dict[str, Any]:
    entry: dict[str, Any] = {"dev": None, "test": None, "test_interval": None}
    averaged = _averaged(name, experts)
    for split, found in scores.items():
        if averaged is not None:
            parts = [found[f"expert:{expert}"] for expert in averaged]
        else:
            parts = [found.get(name)]
        known = [part for part in parts if part is not None]
        if not known:
            continue
        entry[split] = float(np.mean([part.mean for part in known]))
        if split == "test" and len(known) == 1:
            entry["test_interval"] = [float(x) for x in interval(known[0])]
        elif split == "test":
            # One resampling of the items for all experts: their mean's own interval.
            draws = np.mean([resample(part) for part in known], axis=0)
            entry["test_interval"] = np.percentile(draws, [2.5, 97.5]).tolist()
    return entry


def _averaged(name: str, experts: Sequence[str]) -> list[str] | None:
    """The experts whose mean score a method is, or None."""
    if name == "mean_expert":
        return list(experts)
    if name == "pretrain_finetune_mean":
        # Given experts have a history of their own: no mean of sources then.
        trained = DIRECT in experts
        return [expert for expert in experts if trained and expert != DIRECT]
    return None


def _coefficients(points: Points, chosen: np.ndarray) -> dict[str, Any]:
    rows = [dict(zip(points.names, map(float, row), strict=True)) for row in chosen]
    if len(rows) == 1:
        return rows[0]
    return {f"group_{g}": row for g, row in enumerate(rows)}


def _mean(scores: Mapping[str, SplitScores], split: str, name: str) -> float | None:
    found = scores.get(split, {}).get(name)
    return None if found is None else found.mean
