"""Which objective should the search follow? The same experts, one search for each.

    python scripts/bench/objectives.py --config=configs/dfwe/quickstart.py \
        --config.seeds=5 --workdir=DIR [--objectives=loss,calibrated_loss,...]

Experts are trained once and found again for every objective. The record of each target,
seed and objective is appended to DIR/objectives.jsonl as it comes, and those that are
there are not made again. The table has test scores, the mean over targets and seeds.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from ml_collections import config_flags

from fusion_jax import runtime
from fusion_jax.evaluation.objectives import OBJECTIVES
from fusion_jax.systems import dfwe

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file of DFWE.")
WORKDIR = flags.DEFINE_string("workdir", "runs/objectives", "Where experts are kept.")
CHOSEN = flags.DEFINE_list("objectives", list(OBJECTIVES), "Those to compare.")

BESIDE = ("uniform_soup", "mean_expert", "best_expert", "direct_finetune")


def main(argv: list[str]) -> None:
    """Runs every objective on every target and seed, and prints the table."""
    del argv
    config = CONFIG.value
    # The search alone: no comparator that costs evaluations, no picture.
    config.comparators = ()
    config.plane = 0
    runtime.initialize()
    workdir = Path(WORKDIR.value)
    workdir.mkdir(parents=True, exist_ok=True)
    file = workdir / "objectives.jsonl"
    there = [json.loads(line) for line in file.open()] if file.is_file() else []
    done = {record["objective"] for record in there}
    for objective in CHOSEN.value:
        if objective in done:
            continue
        config.search.objective = objective
        result = dfwe.run(config, workdir, overwrite=True)
        records = [shown(objective, r) for r in runs(result.results, workdir)]
        with file.open("a") as lines:
            lines.writelines(json.dumps(record) + "\n" for record in records)
        there += records
    print(table(there))


def runs(results: dict[str, Any], workdir: Path) -> list[dict[str, Any]]:
    """The record of each target and seed."""
    if "methods" in results:
        return [results]
    files = sorted(workdir.glob("*/seed_*/results.json"))
    return [json.loads(file.read_text()) for file in files]


def shown(objective: str, results: dict[str, Any]) -> dict[str, Any]:
    """What the table needs of one run."""
    methods = results["methods"]
    return {
        "objective": objective,
        "target": results["target"],
        "seed": results["seed"],
        "answer": results["answer"]["chosen"],
        "dev": methods["dfwe"]["dev"],
        "test": methods["dfwe"]["test"],
        "rows": results["rows"],
        "beside": {name: (methods[name] or {}).get("test") for name in BESIDE},
    }


def table(records: list[dict[str, Any]]) -> str:
    """Objectives by targets: mean test score over seeds."""
    targets = list(dict.fromkeys(record["target"] for record in records))
    rows: dict[str, dict[str, list[float]]] = {}
    for record in records:
        scores = {record["objective"]: record["test"], **record["beside"]}
        for name, score in scores.items():
            if score is not None:
                own = rows.setdefault(name, {})
                own.setdefault(record["target"], []).append(score)
    lines = ["| search objective | " + " | ".join([*targets, "mean"]) + " |"]
    lines.append("|---|" + "---:|" * (len(targets) + 1))
    for name, by_target in rows.items():
        means = [np.mean(by_target[target]) for target in targets]
        cells = [f"{value:.3f}" for value in [*means, np.mean(means)]]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
