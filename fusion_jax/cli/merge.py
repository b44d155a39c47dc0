"""fusion-jax merge: checkpoints in, one checkpoint out."""

import argparse
import contextlib
import json
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fusion_jax.cli.failures import WrongUsage
from fusion_jax.cli.printing import table_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "recipe", nargs="?", type=Path, metavar="CONFIG.yml", help="a mergekit file"
    )
    parser.add_argument("--method", help="linear, ties, slerp, ...: see --methods")
    parser.add_argument("--methods", action="store_true", help="list them and stop")
    parser.add_argument("--base", type=Path, help="folder of the pretrained model")
    parser.add_argument("--models", type=Path, nargs="+", help="folders to merge")
    parser.add_argument(
        "--weights", type=float, nargs="+", help="one number a model, as given"
    )
    parser.add_argument(
        "--statistics",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="one file a model, of fusion-jax statistics: for regmean, mats, fisher",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the method; NAME=A,B,C gives one value a model",
    )
    parser.add_argument("--out", type=Path, help="folder of the merged model")
    parser.add_argument("--dtype", help="of the output: float32, bfloat16, float16")
    parser.add_argument("--seed", type=int, default=0, help="of random masks")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the plan and its memory, and stop"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace --out")
    parser.add_argument(
        "--allow-nonfinite", action="store_true", help="merge NaN and infinity too"
    )
    parser.add_argument(
        "--lenient", action="store_true", help="warn of unknown keys of a mergekit file"
    )
    parser.add_argument(
        "--shard-size", default="5GB", help="most bytes of a weight file: 500MB, 5GB"
    )


def run(options: argparse.Namespace) -> None:
    """Merges, and prints where the model lies."""
    if options.methods:
        print(_methods(options.json))
        return
    _check_usage(options)
    from fusion_jax.checkpoints.orbax_folders import as_folders, is_orbax

    given = [*(options.models or []), *([options.base] if options.base else [])]
    if not any(map(is_orbax, given)):
        _merge(options)
        return
    if not all(map(is_orbax, given)):
        others = ", ".join(str(path) for path in given if not is_orbax(path))
        raise ValueError(f"{others}: no Orbax checkpoint, as the other models are")
    if options.out and options.out.resolve() in {path.resolve() for path in given}:
        raise ValueError(f"--out: {options.out} is one of the models; choose another")
    with as_folders(given) as folders:
        options.models = [folders[model] for model in options.models]
        options.base = folders[options.base] if options.base else None
        _merge(options, orbax=True)


def _merge(options: argparse.Namespace, *, orbax: bool = False) -> None:
    """Merges folders of safetensors; `orbax`: of trees, which are saved as a tree."""
    from fusion_jax.checkpoints.merge import refuse_existing
    from fusion_jax.checkpoints.run_merge import dry_run, run_merge
    from fusion_jax.checkpoints.slots import floating_dtype
    from fusion_jax.checkpoints.tensors import CheckpointError

    shard_bytes = sys.maxsize if orbax else _bytes(options.shard_size)
    if options.dtype:
        try:
            floating_dtype(options.dtype)
        except CheckpointError as error:
            raise WrongUsage(f"--dtype: {error}") from error
    text = None
    if options.recipe:
        if not options.recipe.is_file():
            raise WrongUsage(f"{options.recipe}: no such file")
        text = options.recipe.read_text()
        from fusion_jax.checkpoints.mergekit.plan import read_plan

        plan = read_plan(
            text,
            options.recipe.parent,
            lenient=options.lenient,
            random_seed=options.seed,
        )
    else:
        from fusion_jax.checkpoints.direct_plan import direct_plan, flax_layout

        settings = dict(setting(text) for text in options.set)
        if orbax:
            # Kernels of a Flax tree are [in, out].
            settings |= (
                flax_layout(options.method) if "input_axis" not in settings else {}
            )
        try:
            plan = direct_plan(
                options.method,
                options.models,
                base=options.base,
                weights=options.weights,
                options=settings,
                dtype=options.dtype,
                statistics=options.statistics,
            )
        except CheckpointError:
            raise
        except ValueError as error:
            raise WrongUsage(str(error)) from error
    if options.recipe and options.dtype:
        from dataclasses import replace

        plan = replace(plan, out_dtype=options.dtype)
    for note in plan.notes:
        print(f"note: {note}", file=sys.stderr)
    described = dry_run(plan)
    if options.dry_run:
        print(json.dumps(described.record) if options.json else described.text)
        return
    refuse_existing(options.out, overwrite=options.overwrite)
    with (
        _bar(options, described.record["bytes_out"]) as progress,
        _target(options.out, orbax) as target,
    ):
        merged = run_merge(
            plan,
            target,
            seed=options.seed,
            shard_bytes=shard_bytes,
            allow_nonfinite=options.allow_nonfinite,
            overwrite=options.overwrite,
            recipe=text,
            command=_command(options),
            progress=progress,
        )
    from fusion_jax.checkpoints.merge_report import REPORT, counts

    found = counts(merged.report)
    if options.json:
        record = {**described.record, "out": str(options.out)}
        print(json.dumps(record | ({"counts": found} if found else {})))
        return
    print(described.text)
    if found:
        said = ", ".join(f"{n} {how}" for how, n in found.items())
        print(f"tensors: {said}; each in {REPORT}")
    if merged.resumed:
        print(f"went on: {merged.resumed} tensors were there from an earlier run")
    print(f"model: {options.out}")


@contextlib.contextmanager
def _target(out: Path, orbax: bool) -> Iterator[Path]:
    """Where the weights are written; what is to be a tree is converted at the end."""
    if not orbax:
        yield out
        return
    from fusion_jax.checkpoints.orbax_folders import to_orbax

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as place:
        folder = Path(place) / out.name
        yield folder
        to_orbax(folder, out)


def _check_usage(options: argparse.Namespace) -> None:
    faults = []
    direct = [
        flag
        for flag, value in (
            ("--method", options.method),
            ("--base", options.base),
            ("--models", options.models),
            ("--weights", options.weights),
            ("--statistics", options.statistics),
            ("--set", options.set),
        )
        if value
    ]
    if options.recipe and direct:
        faults.append(f"{', '.join(direct)}: a mergekit file says these itself")
    if not options.recipe and not options.method:
        faults.append("give --method and --models, or a mergekit file")
    if not options.recipe and options.method and not options.models:
        faults.append("--models: no folder given")
    if not options.out and not options.dry_run:
        faults.append("--out: no folder given")
    if faults:
        raise WrongUsage("\n".join(faults))


def setting(text: str) -> tuple[str, Any]:
    """NAME=VALUE as a name and a number, a word, a flag, or several by commas."""
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise WrongUsage(f"--set {text}: write NAME=VALUE")
    parts = [_value(part) for part in value.split(",")]
    return name, tuple(parts) if len(parts) > 1 else parts[0]


def _value(text: str) -> Any:
    lowered = text.strip().lower()
    if lowered in ("true", "false"):
        return lowered == "true"
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text.strip()


def _bytes(text: str) -> int:
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "B": 1}
    for unit, size in units.items():
        number = text.upper().removesuffix(unit)
        if number != text.upper() and number.replace(".", "", 1).isdigit():
            return max(1, int(float(number) * size))
    if text.isdigit() and int(text):
        return int(text)
    raise WrongUsage(f"--shard-size: '{text}' is no size; write 500MB or 5GB")


def _command(options: argparse.Namespace) -> str:
    """The command without folders of this machine: their last names alone."""
    words = ["fusion-jax", "merge"]
    if options.recipe:
        words.append(options.recipe.name)
    for flag, value in (("--method", options.method), ("--base", options.base)):
        if value:
            words += [flag, getattr(value, "name", value)]
    if options.models:
        words += ["--models", *[model.name for model in options.models]]
    if options.weights:
        words += ["--weights", *[f"{w:g}" for w in options.weights]]
    if options.statistics:
        words += ["--statistics", *[file.name for file in options.statistics]]
    for setting in options.set:
        words += ["--set", setting]
    if options.dtype:
        words += ["--dtype", options.dtype]
    if options.allow_nonfinite:
        words.append("--allow-nonfinite")
    if options.lenient:
        words.append("--lenient")
    words += ["--seed", str(options.seed), "--out", options.out.name]
    return shlex.join(str(word) for word in words)


class _bar:
    """A progress bar on a terminal, nothing elsewhere."""

    def __init__(self, options: argparse.Namespace, total: int) -> None:
        self._shown = sys.stderr.isatty() and not (options.quiet or options.json)
        self._total = total
        self._bar: Any = None

    def __enter__(self) -> Callable[[str, int], None] | None:
        if not self._shown:
            return None
        from tqdm import tqdm

        self._bar = tqdm(total=self._total, unit="B", unit_scale=True)

        def step(name: str, count: int) -> None:
            self._bar.set_postfix_str(name[-40:], refresh=False)
            self._bar.update(count)

        return step

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


def _methods(as_json: bool) -> str:
    from fusion_jax.merging import MERGES

    rows = {
        name: {
            "needs": sorted(record.needs),
            "experts": list(record.experts),
            "leafwise": record.leafwise,
            "reference": record.reference,
        }
        for name, record in sorted(MERGES.items())
    }
    return table_text(
        rows,
        lambda row: f"{', '.join(row['needs']) or '-':16}  {row['reference']}",
        as_json,
    )
