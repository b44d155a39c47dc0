"""Merging checkpoints beside mergekit and FusionBench: seconds, memory, agreement.

    python scripts/bench/merge.py --workdir W --make-peers V [--table TABLE.md]
    python scripts/bench/merge.py --workdir W --peers V --methods linear ties

W gets random checkpoints of 110 to 134 M parameters, a base and four experts (2.7 GB a
family), and one merge's outputs at a time. V is an environment that has the peers:
their commands are called, nothing of them is imported here.

- Commands: every merge in a fresh process, from files to files in float32, sides taking
  turns, the inputs in the page cache. Start-up counts, and stands beside (--help).
- In memory: the same arrays in a fresh process, calls after a first one that is told
  apart; mergekit by merge_state_dicts, ours by merge_arrays.
- Agreement of what the commands wrote: the largest difference where a method is exact;
  mean, spread and slope of the merged task vectors where it draws masks.
- The disk: `cat` of the inputs and a synced write of one model against our linear
  merge, which syncs what it writes. The peers do not sync.

All on the processor. Prints the record as JSON, and tables to stderr or --table; what
is measured so far stands in W/merge.json. Ratios are theirs over ours.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# No numpy here: see `apart`.
import merge_recipes as recipes
from merge_processes import apart, measure
from merge_table import tables
from merge_turns import Command, environment, log_of, outputs, ratio, tail, turns

FAMILIES = ("llama", "bert", "gpt2")
PACKAGES = (
    *("jax", "numpy", "safetensors", "torch", "transformers"),
    *("mergekit", "fusion-bench"),
)
DISK = 'cat "$@" >/dev/null && dd if="$1" of="$0" bs=16M conv=fsync status=none'


def main() -> None:
    """Measures and prints."""
    options = parse()
    if options.make_peers:
        recipes.make_peers(options.peers)
    options.workdir.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        **about(options),
        "families": {},
        "start_up": {},
        "commands": {},
        "in_memory": {},
    }
    record["start_up"] = start_up(options)
    for family in options.families:
        models = options.workdir / options.size / family
        record["families"][family] = apart(
            "merge_checkpoints", "make", models, family, options.size
        )
        for part, measured in (("commands", commands), ("in_memory", in_memory)):
            for method in options.methods if part in options.parts else ():
                found = measured(options, family, method, models)
                record[part].setdefault(family, {})[method] = found
                text = json.dumps(record, indent=2)
                (options.workdir / "merge.json").write_text(text)
    told = tables(record)
    if options.table:
        options.table.write_text(told, encoding="utf-8")
    else:
        print(told, file=sys.stderr)
    print(json.dumps(record, indent=2))
    faults = failures(record)
    if faults:
        raise SystemExit("failed: " + ", ".join(faults))


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--workdir", type=Path, required=True)
    peers = parser.add_mutually_exclusive_group()
    peers.add_argument(
        "--peers", type=Path, metavar="VENV", help="without: our side alone"
    )
    peers.add_argument(
        "--make-peers", type=Path, metavar="VENV", help="made where it is not there"
    )
    parser.add_argument("--size", choices=("tiny", "full"), default="full")
    parser.add_argument(
        "--families", nargs="+", choices=FAMILIES, default=["llama"], metavar="FAMILY"
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=recipes.RECIPES,
        default=list(recipes.RECIPES),
        metavar="METHOD",
        help=", ".join(recipes.RECIPES),
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=("commands", "in_memory"),
        default=["commands", "in_memory"],
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--seconds",
        type=float,
        default=60,
        help="of one merge in memory; no further repeat begins after them",
    )
    parser.add_argument("--table", type=Path, metavar="FILE.md")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error("--repeats: at least 1")
    # Symbolic links stay: the interpreter of an environment is one.
    found = options.peers or options.make_peers
    options.peers = found.absolute() if found else None
    options.workdir = options.workdir.absolute()
    return options


def about(options: argparse.Namespace) -> dict[str, Any]:
    """The machine, the versions, and what was asked for."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    interpreters = {"ours": Path(sys.executable)}
    if options.peers:
        interpreters["peers"] = options.peers / "bin" / "python"
    code = (
        "import importlib.metadata as m, json, sys; "
        "have = {d.name.lower(): d.version for d in m.distributions()}; "
        "print(json.dumps({n: have[n] for n in sys.argv[1:] if n in have}))"
    )
    return {
        "machine": {
            "processor": names[0] if names else platform.processor(),
            "cores": os.cpu_count(),
            "memory_gib": memory / 2**30,
            "python": platform.python_version(),
        },
        "commit": said(["git", "-C", recipes.ROOT, "rev-parse", "--short", "HEAD"]),
        "versions": {
            side: json.loads(said([python, "-c", code, *PACKAGES]) or "{}")
            for side, python in interpreters.items()
        },
        "size": options.size,
        "repeats": options.repeats,
    }


def said(command: Sequence[str | Path]) -> str:
    """What a command prints, empty where it fails or is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def start_up(options: argparse.Namespace) -> dict[str, Any]:
    """What --help takes: the start of each command."""
    sides: dict[str, Command] = {
        "ours": lambda _: recipes.our_command("merge", "--help")
    }
    if options.peers:
        programs = {"mergekit": "mergekit-yaml", "fusion_bench": "fusion_bench"}
        for side, program in programs.items():
            words = [options.peers / "bin" / program, "--help"]
            sides[side] = lambda _, words=words: words
    # Python compiles a module when it is first imported, and keeps it.
    turns(options.workdir, "start", sides, 1)
    found = turns(options.workdir, "start", sides, options.repeats)
    good = [side for side, runs in found.items() if not runs["failed"]]
    return {
        "sides": found,
        "ratios": {
            f"{side} / ours": ratio(found[side], found["ours"])
            for side in good
            if side != "ours" and "ours" in good
        },
    }


def commands(
    options: argparse.Namespace, family: str, method: str, models: Path
) -> dict[str, Any]:
    """One merge by the commands of all sides that have it."""
    recipe = recipes.RECIPES[method]
    configs = options.workdir / "configs"
    file = configs / f"{family}-{method}.yml"
    recipes.mergekit_file(method, models, file)
    sides: dict[str, Command] = {
        "ours": lambda out: recipes.our_command("merge", file, "--out", out)
    }
    pairs = []
    if options.peers:
        sides["mergekit"] = lambda out: recipes.mergekit_command(
            options.peers, file, out
        )
        pairs.append(("ours", "mergekit"))
    if options.peers and recipe.fusion_bench and family == "llama":
        sides["fusion_bench"] = lambda out: recipes.fusion_bench_command(
            options.peers, method, models, configs, out
        )
        # Seconds compare where the merge is the same one.
        same = "ours_whole" if method == "ties" else "ours"
        if method == "ties":
            sides[same] = lambda out: recipes.our_whole_ties(models, out)
        pairs.append((same, "fusion_bench"))
    inputs = [
        models / label / "model.safetensors" for label in recipes.labels_of(method)
    ]
    if method == "linear":
        sides["disk"] = lambda out: ["sh", "-c", DISK, out, *inputs]
    found: dict[str, Any] = {}
    found["sides"] = turns(
        options.workdir, f"{family}-{method}", sides, options.repeats, inputs
    )
    place = outputs(options.workdir)
    whole = {side for side, one in found["sides"].items() if not one["failed"]}
    pairs = [pair for pair in pairs if whole.issuperset(pair)]
    found["ratios"] = {
        f"{theirs} / {mine}": ratio(found["sides"][theirs], found["sides"][mine])
        for mine, theirs in pairs
    }
    if recipe.random:
        merged = {side: place / side for side in ("ours", "mergekit") if side in whole}
        experts = [models / label for label in recipe.models]
        found["moments"] = apart(
            *("merge_agreement", "moments", merged, models / "base", experts),
            recipes.WEIGHT,
        )
    else:
        found["agreement"] = {
            f"{mine} - {theirs}": apart(
                *("merge_agreement", "distance", place / mine, place / theirs),
                models / "base" if recipe.clamped else None,
            )
            for mine, theirs in pairs
        }
    if whole.issuperset(("ours", "disk")):
        moved = sum(path.stat().st_size for path in [*inputs, inputs[0]])
        found["disk"] = disk_share(found["sides"], moved)
    shutil.rmtree(place)
    return found


def disk_share(sides: Mapping[str, Any], moved: int) -> dict[str, float]:
    """GB/s of our merge beside the disk's, and the share that is."""
    mine, floor = (sides[side]["wall"]["min"] for side in ("ours", "disk"))
    return {
        "bytes": moved,
        "ours_gb_per_second": moved / mine / 1e9,
        "disk_gb_per_second": moved / floor / 1e9,
        "share": floor / mine,
    }


def in_memory(
    options: argparse.Namespace, family: str, method: str, models: Path
) -> dict[str, Any]:
    """One merge of arrays, in a process a side."""
    recipe = recipes.RECIPES[method]
    job = {
        "models": {
            label: str(models / label / "model.safetensors")
            for label in recipes.labels_of(method)
        },
        "repeats": options.repeats,
        "seconds": options.seconds,
        "threads": os.cpu_count(),
    }
    sides = {
        "ours": {
            "method": recipe.ours,
            "coefficients": recipe.coefficients,
            "options": recipe.options,
            # The first of two on an arc is no base.
            "base": recipe.base if recipe.base == "base" else None,
        }
    }
    pythons = {"ours": Path(sys.executable)}
    if options.peers:
        sides["mergekit"] = {
            "method": method,
            "parameters": recipes.mergekit_parameters(method),
            "base": recipe.base,
        }
        pythons["mergekit"] = options.peers / "bin" / "python"
    script = Path(__file__).with_name("merge_in_process.py")
    found: dict[str, Any] = {}
    for side, own in sides.items():
        text = json.dumps({**job, **own, "side": side})
        # -P: nothing of this folder hides a module of the same name.
        command = [pythons[side], "-P", script, text]
        log = log_of(options.workdir, f"memory-{family}-{method}-{side}")
        run = measure(command, log, environment(side))
        found[side] = {name: run[name] for name in ("code", "maxrss_mb", "load")}
        if run["code"]:
            found[side]["said"] = tail(log)
            continue
        timed = json.loads(log.read_text().splitlines()[-1])
        seconds = timed["seconds"]
        found[side] |= {
            "first": timed["first"],
            "seconds": seconds,
            "min": min(seconds),
            "median": statistics.median(seconds),
        }
    if all("min" in found.get(side, {}) for side in ("ours", "mergekit")):
        found["ratio"] = found["mergekit"]["min"] / found["ours"]["min"]
    return found


def failures(record: Mapping[str, Any]) -> list[str]:
    """The jobs that ended badly."""
    started = record["start_up"]["sides"]
    found = [f"{side} --help" for side, runs in started.items() if runs["failed"]]
    for family, methods in record["commands"].items():
        for method, one in methods.items():
            found += [
                f"{side} {method} of {family}"
                for side, runs in one["sides"].items()
                if runs["failed"]
            ]
    for family, methods in record["in_memory"].items():
        for method, one in methods.items():
            found += [
                f"{side} {method} of {family} in memory"
                for side in ("ours", "mergekit")
                if one.get(side, {}).get("code")
            ]
    return found


if __name__ == "__main__":
    main()
