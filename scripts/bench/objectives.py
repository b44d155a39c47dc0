"""Which objective should a search follow? One pool of candidates, ranked by each.

    python scripts/bench/objectives.py --config=configs/dfwe/quickstart.py \
        --config.seeds=5 --workdir=DIR [--pool=64]

Candidates are drawn from the simplex between the experts of a DFWE run, which are
trained, or found in DIR/experts. Every candidate is scored on dev and on test. A good
objective on dev puts those first that are good on test; for each there is

- rank: Spearman's correlation of the dev objective with the test score, over the pool;
- best: test score of the candidate that is first on dev, above the pool's mean;
- tenth: the mean of the first tenth, above the pool's mean: where a search is led to.

A line for each target and seed is appended to DIR/objectives.jsonl; what is there is
not measured again.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from ml_collections import config_flags

from fusion_jax import runtime
from fusion_jax.evaluation.objectives import OBJECTIVES, WITHOUT_PROBABILITIES
from fusion_jax.evaluation.scoring import score_many
from fusion_jax.search import soups
from fusion_jax.systems import dfwe
from fusion_jax.systems.interpolation import interpolated_points
from fusion_jax.systems.methods import scorer_for
from fusion_jax.systems.workdir import content_hash

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file of DFWE.")
WORKDIR = flags.DEFINE_string("workdir", "runs/objectives", "Where experts are kept.")
POOL = flags.DEFINE_integer("pool", 64, "Candidates.")

MEASURES = ("rank", "best", "tenth")


def main(argv: list[str]) -> None:
    """Measures every target and seed, and prints the means."""
    del argv
    config = CONFIG.value
    # The multi-task model is no point.
    config.comparators = ()
    runtime.initialize()
    workdir = Path(WORKDIR.value)
    workdir.mkdir(parents=True, exist_ok=True)
    file = workdir / "objectives.jsonl"
    made_by = content_hash(config=config.to_json(), pool=POOL.value)
    there = [json.loads(line) for line in file.open()] if file.is_file() else []
    records = [record for record in there if record["made_by"] == made_by]
    done = {(record["target"], record["seed"]) for record in records}
    for setting in dfwe.settings(config, workdir / "experts"):
        for target in setting.targets:
            if (target, setting.seed) in done:
                continue
            records.append({"made_by": made_by, **measure(setting, target)})
            with file.open("a") as lines:
                lines.write(json.dumps(records[-1]) + "\n")
    print(table(records))


def measure(setting: dfwe.Setting, target: str) -> dict[str, Any]:
    """The measures of every objective on one target."""
    config = setting.config
    problem = dfwe.problem_of(setting, target, config.shots)
    models, start, _ = dfwe.train_models(setting, problem)
    points = interpolated_points(config, models, start)
    count = len(points.names)
    if POOL.value < count + 2:
        raise SystemExit(f"--pool={POOL.value}: {count} experts need {count + 2}")
    pool = np.concatenate(
        [
            soups.uniform(count)[None],
            soups.one_hot(count),
            soups.random_candidates(count, POOL.value - count - 1, setting.seed),
        ]
    )
    dev, test = (
        scorer_for(config, problem, split, points).readouts(pool)
        for split in ("dev", "test")
    )
    on_test = score_many(test, problem.encoded["test"], problem.metrics).mean
    record: dict[str, Any] = {
        "target": target,
        "seed": setting.seed,
        "rows": {split: len(rows) for split, rows in problem.task.splits.items()},
        "pool": len(pool),
        "test": {"mean": on_test.mean(), "std": on_test.std(), "best": on_test.max()},
        "objectives": {},
    }
    for name, objective in OBJECTIVES.items():
        # 'auto' is one of the others.
        if name == "auto" or (
            name == "soft_f1" and problem.kind in WITHOUT_PROBABILITIES
        ):
            continue
        fitness = objective(dev, problem.encoded["dev"], problem.metrics)
        record["objectives"][name] = measures(fitness, on_test)
    return record


def measures(fitness: np.ndarray, on_test: np.ndarray) -> dict[str, float]:
    """How well [P] fitness, lower is better, finds what is good on test, [P]."""
    order = np.argsort(fitness, kind="stable")
    first = order[: max(len(order) // 10, 1)]
    return {
        "rank": correlation(ranks(-fitness), ranks(on_test)),
        "best": float(on_test[order[0]] - on_test.mean()),
        "tenth": float(on_test[first].mean() - on_test.mean()),
    }


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's; 0 where one of them tells no candidate from another."""
    one, other = one - one.mean(), other - other.mean()
    scale = np.linalg.norm(one) * np.linalg.norm(other)
    return float(one @ other / scale) if scale else 0.0


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, equal values sharing their mean."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts + 1) / 2)[place]


def table(records: list[dict[str, Any]]) -> str:
    """Each measure, the mean over targets and seeds, and where it is above zero."""
    lines = [
        "| objective | runs | " + " | ".join(MEASURES) + " | tenth above 0 |",
        "|---|---:|" + "---:|" * (len(MEASURES) + 1),
    ]
    for name in OBJECTIVES:
        own = [r["objectives"][name] for r in records if name in r["objectives"]]
        if not own:
            continue
        means = [f"{np.mean([o[m] for o in own]):+.3f}" for m in MEASURES]
        above = sum(o["tenth"] > 0 for o in own)
        cells = [name, str(len(own)), *means, f"{above} of {len(own)}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
