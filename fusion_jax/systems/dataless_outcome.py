"""results.json of a dataless fusion: of one group of models, and of all."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fusion_jax.evaluation.bootstrap import resample
from fusion_jax.evaluation.scoring import Scores
from fusion_jax.reports.summary import summarise
from fusion_jax.systems.defaults import DATALESS_METHODS as METHODS
from fusion_jax.systems.outcome import SCHEMA_VERSION, versions

__all__ = ["METHODS", "SYSTEM", "many_results", "mean_score", "method_entry", "not_run"]

SYSTEM = "dataless_fusion"

OUT_OF_DOMAIN = "out_of_domain"

# task -> the models' scores on it whose mean counts: one model's, or (individual
# models on a domain that none of them knows) all of theirs.
TaskScores = Mapping[str, Sequence[Scores]]


def method_entry(
    dev: TaskScores, test: TaskScores | None, unseen: TaskScores | None
) -> dict[str, Any]:
    """The record of one method.

    Args:
      dev: of the members' tasks.
      test: of the members' tasks; None where no task has a test split.
      unseen: of other domains; None where there are none.

    Returns:
      'dev', 'test', 'test_interval' (of the members' domains, as in every system's
      record), 'in_domain' and 'out_of_domain': {'score', 'interval', 'tasks'}, None
      for what there is not.
    """
    inside, outside = _domain(test), _domain(unseen)
    return {
        "dev": mean_score(dev),
        "test": inside["score"] if inside else None,
        "test_interval": inside["interval"] if inside else None,
        "in_domain": inside,
        OUT_OF_DOMAIN: outside,
    }


def mean_score(scores: TaskScores) -> float:
    """The mean over tasks, of the mean over the models of a task."""
    return float(np.mean([_task_mean(found) for found in scores.values()]))


def _domain(scores: TaskScores | None) -> dict[str, Any] | None:
    if not scores:
        return None
    # One resampling of each task's items, for all models.
    draws = np.mean(
        [np.mean([resample(s) for s in found], axis=0) for found in scores.values()],
        axis=0,
    )
    return {
        "score": mean_score(scores),
        "interval": [float(x) for x in np.quantile(draws, [0.025, 0.975])],
        "tasks": {task: _task_mean(found) for task, found in scores.items()},
    }


def _task_mean(found: Sequence[Scores]) -> float:
    return float(np.mean([score.mean for score in found]))


def not_run() -> dict[str, Any]:
    """The record of a method that was not run."""
    return dict.fromkeys(("dev", "test", "test_interval", "in_domain", OUT_OF_DOMAIN))


def many_results(
    runs: Sequence[dict[str, Any]], config: dict[str, Any]
) -> dict[str, Any]:
    """The record of all groups and seeds, with summaries of both kinds of domain."""
    outside = [_as_out_of_domain(run) for run in runs if _has_unseen(run)]
    return {
        "schema_version": SCHEMA_VERSION,
        "system": SYSTEM,
        "runs": list(runs),
        "summary": summarise(runs),
        "summary_out_of_domain": summarise(outside) if outside else None,
        "ranking": {
            "in_domain": ranking(runs, "in_domain"),
            OUT_OF_DOMAIN: ranking(outside, OUT_OF_DOMAIN),
        },
        "versions": versions(),
        "config": config,
    }


def ranking(
    runs: Sequence[Mapping[str, Any]], domain: str
) -> dict[str, dict[str, Any]]:
    """How often one merge is above another, over groups and seeds.

    Returns:
      'A > B' -> {'wins', 'of', 'mean_difference'}; of the runs that have both.
    """
    pairs = (
        ("regmean", "fisher"),
        ("fisher", "average"),
        ("regmean", "average"),
        ("regmean_plus_plus", "regmean"),
        ("mats", "regmean"),
        ("regmean", "logit_ensemble"),
        ("regmean", "multitask"),
    )
    found = {}
    for one, other in pairs:
        both = [(_score(run, one, domain), _score(run, other, domain)) for run in runs]
        gains = [a - b for a, b in both if a is not None and b is not None]
        if gains:
            found[f"{one} > {other}"] = {
                "wins": int(np.sum(np.array(gains) > 0)),
                "of": len(gains),
                "mean_difference": float(np.mean(gains)),
            }
    return found


def _score(run: Mapping[str, Any], method: str, domain: str) -> float | None:
    found = (run["methods"].get(method) or {}).get(domain)
    return found["score"] if found else None


def _has_unseen(run: Mapping[str, Any]) -> bool:
    return any(entry[OUT_OF_DOMAIN] for entry in run["methods"].values())


def _as_out_of_domain(run: Mapping[str, Any]) -> dict[str, Any]:
    """The run with the scores of unseen domains in the place of the test scores."""

    def moved(entry: Mapping[str, Any]) -> dict[str, Any]:
        outside = entry[OUT_OF_DOMAIN] or {"score": None, "interval": None}
        return {
            **entry,
            "dev": None,
            "test": outside["score"],
            "test_interval": outside["interval"],
        }

    methods = {name: moved(entry) for name, entry in run["methods"].items()}
    return {**run, "methods": methods}
