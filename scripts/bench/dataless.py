"""Merging by statistics of data beside FusionBench: RegMean, Fisher, and their growth.

    python scripts/bench/dataless.py --workdir W --make-peers V [--table TABLE.md]
    python scripts/bench/dataless.py --workdir W --peers V --parts regmean

W gets random GPT-2 classifiers of 124 M parameters, a base and four experts, and 64
rows of 64 random tokens for each expert; no row is padded. V is an environment that has
the peers: their command is called, nothing of them is imported here.

- regmean: four models by FusionBench's command; by ours layer by layer
  (`regress_stages`), and by files (Grams of each model to a file, then the merge). All
  regress the kernels of the decoder, last layer over all tokens, off-diagonal times
  0.6, no ridge, and average the rest.
- fisher: four models by FusionBench's command, and by ours with files. Theirs squares
  the gradient of a batch, summed over its rows and over sqrt(p) log p of the classes;
  ours is the exact expectation, row by row: more backward passes, and other numbers.
- growth: ours with more and more models. Every model has its own rows and statistics;
  those after the fourth have the weights of the first four.
- Agreement of our two ways with each other, and of a layer with the formula in float64.
  FusionBench writes no model for these jobs: its numbers cannot be compared.

Each run is a fresh process on the processor, sides take turns, inputs lie in the page
cache. Compiling counts: no cache is kept. Prints the record as JSON, and tables to
stderr or --table; what is measured so far stands in W/dataless.json. Ratios are theirs
over ours.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# No numpy here: see `apart`.
import merge_recipes as recipes
from dataless_table import tables
from merge import about
from merge_processes import apart
from merge_turns import Command, log_of, outputs, ratio, turns

EXAMPLES = 64
TOKENS = 64
BATCH = 16
ALPHA = 0.6
PARTS = ("regmean", "fisher", "growth")
WAYS = {
    "regmean": {"ours_layers": "layers", "ours_files": "files"},
    "fisher": {"ours": "fisher"},
}
FUSION_BENCH = {
    "regmean": (
        "method=regmean/gpt2_regmean",
        f"method.num_regmean_examples={EXAMPLES}",
        f"method.reduce_non_diagonal_ratio={ALPHA}",
    ),
    "fisher": (
        "method=fisher_merging/gpt2_fisher_merging",
        f"method.num_fisher_examples={EXAMPLES}",
    ),
}


def main() -> None:
    """Measures and prints."""
    options = parse()
    if options.make_peers:
        recipes.make_peers(options.peers)
    options.workdir.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        **about(options),
        "examples": EXAMPLES,
        "tokens": TOKENS,
        "batch": options.batch,
        "alpha": ALPHA,
        "model": inputs(options),
    }
    for part in options.parts:
        if part == "growth":
            growth(options, record)
        else:
            record[part] = job(options, part)
        save(options, record)
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
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--models",
        type=int,
        nargs="+",
        default=[2, 4, 8, 16],
        help="numbers of models, for growth",
    )
    parser.add_argument(
        "--growth-repeats", type=int, default=1, help="of each number of models"
    )
    parser.add_argument(
        "--batch", type=int, default=BATCH, help="rows of a batch, of all sides"
    )
    parser.add_argument("--table", type=Path, metavar="FILE.md")
    options = parser.parse_args()
    for name in ("repeats", "growth_repeats", "batch"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: at least 1")
    if EXAMPLES % options.batch:
        parser.error(f"--batch: {EXAMPLES} rows are no whole number of batches")
    if min(options.models) < 2:
        parser.error("--models: at least 2")
    # Symbolic links stay: the interpreter of an environment is one.
    found = options.peers or options.make_peers
    options.peers = found.absolute() if found else None
    options.workdir = options.workdir.absolute()
    options.models = sorted(set(options.models))
    return options


def inputs(options: argparse.Namespace) -> dict[str, int]:
    """Makes models and rows where they are not there yet."""
    folder = models_of(options)
    made = apart("merge_checkpoints", "make", folder, "gpt2", options.size)
    words = json.loads((folder / "base" / "config.json").read_text())["vocab_size"]
    count = max(options.models) if "growth" in options.parts else 0
    for number in range(1, max(count, len(recipes.EXPERTS)) + 1):
        place = folder / f"expert_{number}"
        if not place.is_dir():
            like = (number - 1) % len(recipes.EXPERTS) + 1
            # The same weights by another name take no room.
            shutil.copytree(folder / f"expert_{like}", place, copy_function=os.link)
        rows = rows_of(options, place)
        apart("dataless_rows", "write", rows, number, (EXAMPLES, TOKENS), words)
    return made


def models_of(options: argparse.Namespace) -> Path:
    """The folder of base and experts."""
    return options.workdir / options.size / "gpt2"


def rows_of(options: argparse.Namespace, model: Path) -> Path:
    """The file of a model's rows."""
    return options.workdir / options.size / "rows" / f"{model.name}.npy"


def experts_of(options: argparse.Namespace, count: int) -> list[Path]:
    """The folders of the first models."""
    return [models_of(options) / f"expert_{k}" for k in range(1, count + 1)]


def our_side(options: argparse.Namespace, way: str, count: int) -> Command:
    """One way of ours with so many models."""
    models = experts_of(options, count)
    script = Path(__file__).with_name("dataless_ours.py")

    def command(out: Path) -> Sequence[str | Path]:
        words = {
            "way": way,
            "models": [str(model) for model in models],
            "rows": [str(rows_of(options, model)) for model in models],
            "out": str(out),
            "batch": options.batch,
            "alpha": ALPHA,
        }
        # -P: nothing of this folder hides a module of the same name.
        return [sys.executable, "-P", script, json.dumps(words)]

    return command


def fusion_bench(options: argparse.Namespace, part: str) -> Command:
    """FusionBench's command; its pool and the reader of rows go to W/configs."""
    configs = options.workdir / "configs"
    folder = models_of(options)
    read = "transformers.GPT2Model.from_pretrained"
    pool = {
        "_target_": "fusion_bench.modelpool.HuggingFaceGPT2ClassificationPool",
        "_recursive_": False,
        "models": {
            label: {"_target_": read, "pretrained_model_name_or_path": str(path)}
            for label, path in {
                "_pretrained_": folder / "base",
                **{label: folder / label for label in recipes.EXPERTS},
            }.items()
        },
        "train_datasets": {
            label: {
                "_target_": "dataless_rows.load",
                "file": str(rows_of(options, folder / label)),
            }
            for label in recipes.EXPERTS
        },
        "tokenizer": {
            "_target_": "transformers.AutoTokenizer.from_pretrained",
            "pretrained_model_name_or_path": str(folder / "base"),
        },
    }
    (configs / "modelpool").mkdir(parents=True, exist_ok=True)
    file = configs / "modelpool" / "pool_dataless.yaml"
    file.write_text(json.dumps(pool, indent=2) + "\n", encoding="utf-8")
    # Alone in its folder, so that nothing else of ours is in the peer's path.
    modules = configs / "modules"
    modules.mkdir(exist_ok=True)
    shutil.copy(Path(__file__).with_name("dataless_rows.py"), modules)
    return lambda out: [
        *("env", f"PYTHONPATH={modules}", options.peers / "bin" / "fusion_bench"),
        *("--config-dir", configs, "modelpool=pool_dataless", "taskpool=dummy"),
        *("fabric.accelerator=cpu", "fabric.devices=1", "print_config=false"),
        *(f"path.log_dir={out}", *FUSION_BENCH[part]),
        *(f"method.batch_size={options.batch}", "method.num_workers=0"),
    ]


def job(options: argparse.Namespace, part: str) -> dict[str, Any]:
    """RegMean or Fisher of four models by all sides."""
    count = len(recipes.EXPERTS)
    models = experts_of(options, count)
    sides = {side: our_side(options, way, count) for side, way in WAYS[part].items()}
    if options.peers:
        sides["fusion_bench"] = fusion_bench(options, part)
    found: dict[str, Any] = measured(options, part, sides, options.repeats, count)
    good = {side for side, runs in found["sides"].items() if not runs["failed"]}
    found["ratios"] = {
        f"fusion_bench / {side}": ratio(
            found["sides"]["fusion_bench"], found["sides"][side]
        )
        for side in WAYS[part]
        if good.issuperset((side, "fusion_bench"))
    }
    if part == "regmean" and good.issuperset(WAYS[part]):
        places = {side: outputs(options.workdir) / side / "model" for side in sides}
        found["agreement"] = {
            "ours_layers - ours_files": apart(
                *("merge_agreement", "distance"),
                *(places["ours_layers"], places["ours_files"]),
            ),
            **{
                f"{side} - formula": apart(
                    *("dataless_check", "against_formula", places[side], models),
                    *([rows_of(options, model) for model in models], ALPHA),
                )
                for side in WAYS[part]
            },
        }
    shutil.rmtree(outputs(options.workdir))
    return found


def save(options: argparse.Namespace, record: Mapping[str, Any]) -> None:
    """What is measured so far."""
    (options.workdir / "dataless.json").write_text(json.dumps(record, indent=2))


def growth(options: argparse.Namespace, record: dict[str, Any]) -> None:
    """Every way of ours with more and more models, into the record."""
    found = record["growth"] = {}
    for ways in WAYS.values():
        for way in ways.values():
            found[way] = {}
            # A way at a time: statistics of many models fill a disk.
            for count in options.models:
                sides = {f"ours_{way}": our_side(options, way, count)}
                name, repeats = f"growth-{count}", options.growth_repeats
                found[way][str(count)] = measured(options, name, sides, repeats, count)
                save(options, record)
                shutil.rmtree(outputs(options.workdir))


def measured(
    options: argparse.Namespace,
    name: str,
    sides: Mapping[str, Command],
    repeats: int,
    count: int,
) -> dict[str, Any]:
    """The runs of all sides, and the phases of the last run of each of ours."""
    files = [model / "model.safetensors" for model in experts_of(options, count)]
    ran = turns(options.workdir, name, sides, repeats, files)
    phases = {
        side: json.loads(
            log_of(options.workdir, f"{name}-{side}").read_text().splitlines()[-1]
        )
        for side, runs in ran.items()
        if side.startswith("ours") and not runs["failed"]
    }
    return {"sides": ran, "phases": phases}


def failures(record: Mapping[str, Any]) -> list[str]:
    """The jobs that ended badly."""
    jobs = {part: record[part] for part in ("regmean", "fisher") if part in record}
    for way, counts in record.get("growth", {}).items():
        jobs |= {f"{way} of {count} models": one for count, one in counts.items()}
    return [
        f"{side}, {name}"
        for name, one in jobs.items()
        for side, runs in one["sides"].items()
        if runs["failed"]
    ]


if __name__ == "__main__":
    main()
