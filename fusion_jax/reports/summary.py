"""What a run says in one sentence, and what many runs say together."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fusion_jax.reports.methods import (
    describe,
    interval_of,
    main_method,
    reported_split,
    score_of,
)

Results = Mapping[str, Any]

MANY_REFERENCES = (
    "pretrain_finetune_best",
    "mean_expert",
    "best_expert",
    "average",
    "base",
)
"""What a method is held against over many runs: the first that was run on all."""


def headline(results: Results) -> str:
    """The answer of one run in one sentence.

    'DFWE scores 0.612 [0.570, 0.650] on test, 0.034 above the mean expert.'
    """
    method, split = main_method(results), reported_split(results)
    label, score = describe(method).label, score_of(results, method, split)
    if score is None:
        return f"{label} was not run."
    bounds = interval_of(results, method) if split == "test" else None
    spread = f" [{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else ""
    where = "on test" if split == "test" else "on dev (there is no test split)"
    for reference in (
        "mean_expert",
        "best_expert",
        "direct_finetune",
        "average",
        "base",
    ):
        other = score_of(results, reference, split)
        if other is not None:
            against = compare(score, other, f"the {describe(reference).label}")
            return f"{label} scores {score:.3f}{spread} {where}, {against}."
    return f"{label} scores {score:.3f}{spread} {where}."


def many_headline(summary: Mapping[str, Any]) -> str:
    """The answer of many runs in one sentence, from `summarise`."""
    method, split = summary["method"], summary["split"]
    label, targets = describe(method).label, summary["targets"]
    row = summary["methods"].get(method, {})
    if row.get("mean") is None:
        return f"{label} was not run on all of the {len(targets)} targets."
    counted = f"{len(targets)} target{'s' if len(targets) != 1 else ''}"
    text = f"{label} scores {row['mean']:.3f} on average over {counted} ({split})"
    for reference in MANY_REFERENCES:
        other = summary["methods"].get(reference, {})
        if other.get("mean") is not None:
            against = compare(row["mean"], other["mean"], describe(reference).label)
            above = sum(
                row["targets"][t]["score"] > other["targets"][t]["score"]
                for t in targets
            )
            return f"{text}, {against}, ahead on {above} of {len(targets)}."
    return f"{text}."


def compare(score: float, other: float, name: str) -> str:
    """'0.034 above NAME', by the rounded scores that the reader sees."""
    gain = round(score, 3) - round(other, 3)
    if abs(gain) < 5e-4:
        return f"level with {name}"
    return f"{abs(gain):.3f} {'above' if gain > 0 else 'below'} {name}"


def summarise(runs: Iterable[Results]) -> dict[str, Any]:
    """Means over seeds and targets.

    Args:
      runs: results of single runs, of any targets and seeds.

    Returns:
      method: the method the runs are about; split: 'test', or 'dev' where no run has
      a test score; targets: names in order of appearance; seeds: numbers;
      methods {name: {targets {target: {score, spread, seeds}}, mean}}: score = mean
      over seeds, spread = their standard deviation (None for one), mean = unweighted
      mean over targets, None unless the method was run on every target with every
      seed, so that means are of the same runs.

    Raises:
      ValueError: there is no run.
    """
    runs = list(runs)
    if not runs:
        raise ValueError("there are no runs to summarise; finish one first")
    by_target: dict[str, list[Results]] = {}
    for run in runs:
        by_target.setdefault(str(run["target"]), []).append(run)
    splits = [reported_split(run) for run in runs]
    split = "test" if "test" in splits else "dev"
    names = list(dict.fromkeys(name for run in runs for name in run["methods"]))
    methods = {name: _over_targets(name, by_target, split) for name in names}
    return {
        "method": main_method(runs[0]),
        "split": split,
        "targets": list(by_target),
        "seeds": sorted({run.get("seed") or 0 for run in runs}),
        "methods": methods,
    }


def _over_targets(
    name: str, by_target: Mapping[str, Sequence[Results]], split: str
) -> dict[str, Any]:
    cells = {}
    for target, runs in by_target.items():
        scores = [score_of(run, name, split) for run in runs]
        known = [s for s in scores if s is not None]
        complete = len(known) == len(scores)
        mean = sum(known) / len(known) if complete and known else None
        spread = None
        if mean is not None and len(known) > 1:
            squares = sum((s - mean) ** 2 for s in known)
            spread = math.sqrt(squares / (len(known) - 1))
        cells[target] = {"score": mean, "spread": spread, "seeds": len(known)}
    scores = [cell["score"] for cell in cells.values()]
    whole = None if None in scores else sum(scores) / len(scores)
    return {"targets": cells, "mean": whole}
