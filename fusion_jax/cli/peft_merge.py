"""fusion-jax peft merge: several modules of one kind in, one out."""

import argparse
from pathlib import Path
from typing import Any

from fusion_jax.cli.failures import WrongUsage
from fusion_jax.cli.merge import setting
from fusion_jax.cli.peft_options import add_host, check_out, read_host, read_module
from fusion_jax.cli.printing import table_text, tell


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The action's options."""
    parser.add_argument("--methods", action="store_true", help="list them and stop")
    parser.add_argument("--method", help="concatenate, svd, ties, ...: see --methods")
    parser.add_argument("--modules", type=Path, nargs="+", help="folders, any form")
    parser.add_argument(
        "--weights", type=float, nargs="+", help="one number a module; 1/K each without"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the method: rank=8, energy=0.99, density=0.5",
    )
    parser.add_argument(
        "--leave-out", metavar="REGEX", help="leaves not to merge, such as 'head/.*'"
    )
    parser.add_argument("--seed", type=int, default=0, help="of random masks")
    parser.add_argument(
        "--form", choices=("fusion_jax", "peft", "adapterhub"), default="fusion_jax"
    )
    add_host(parser)
    parser.add_argument("--out", type=Path, help="folder of the merged module")
    parser.add_argument("--overwrite", action="store_true", help="replace --out")


def run(options: argparse.Namespace) -> None:
    """Merges, and prints where the module lies and what was lost."""
    if options.methods:
        print(_methods(options.json))
        return
    _check_usage(options)
    import jax

    from fusion_jax.checkpoints.modules import save_module
    from fusion_jax.peft.combine import combine
    from fusion_jax.peft.combine_table import COMBINES

    if options.method not in COMBINES:
        known = ", ".join(COMBINES)
        raise WrongUsage(f"--method {options.method}: not one of {known}")
    check_out(options)
    checkpoint, host = read_host(options)
    modules = [read_module(options, folder, host) for folder in options.modules]
    merged = combine(
        options.method,
        modules,
        options.weights,
        host=None if checkpoint is None else checkpoint.params,
        key=jax.random.key(options.seed),
        leave_out=options.leave_out,
        strict_host=options.strict_host,
        **dict(setting(text) for text in options.set),
    )
    save_module(options.out, merged.module, form=options.form, family=options.family)
    record: dict[str, Any] = {
        "method": options.method,
        "modules": [str(folder) for folder in options.modules],
        "weights": options.weights or [1.0 / len(modules)] * len(modules),
        "lost": dict(merged.lost),
        "rank": merged.module.config.rank,
        "out": str(options.out),
    }
    tell(options, record, _text(record))


def _text(record: dict[str, Any]) -> str:
    weights = ", ".join(
        f"{module} {weight:g}"
        for module, weight in zip(record["modules"], record["weights"], strict=True)
    )
    lines = [f"{record['method']}: {weights}"]
    if record["lost"]:
        worst = max(record["lost"], key=lambda path: record["lost"][path])
        mean = sum(record["lost"].values()) / len(record["lost"])
        lines.append(
            f"lost by the cut to a rank, as a share of an update's norm: mean "
            f"{mean:.3g}, most {record['lost'][worst]:.3g} ({worst})"
        )
    return "\n".join([*lines, f"module: {record['out']}"])


def _check_usage(options: argparse.Namespace) -> None:
    faults = []
    if not options.method:
        faults.append("--method: none given; --methods lists them")
    if not options.modules:
        faults.append("--modules: no folder given")
    elif options.weights and len(options.weights) != len(options.modules):
        faults.append(
            f"--weights: {len(options.weights)} for {len(options.modules)} modules"
        )
    if not options.out:
        faults.append("--out: no folder given")
    if faults:
        raise WrongUsage("\n".join(faults))


def _methods(as_json: bool) -> str:
    from fusion_jax.peft.combine_table import COMBINES

    rows = {
        name: {
            "kinds": list(record.kinds),
            "exact": record.exact,
            "options": list(record.options),
            "reference": record.reference,
        }
        for name, record in COMBINES.items()
    }
    return table_text(
        rows,
        lambda row: (
            f"{', '.join(row['kinds'])}; "
            f"{'exact; ' if row['exact'] else ''}{row['reference']}"
        ),
        as_json,
    )
