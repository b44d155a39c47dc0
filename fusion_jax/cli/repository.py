"""fusion-jax repository: a base model that a group improves, on plain storage."""

import argparse
import json
from collections.abc import Callable, Mapping
from typing import Any

from fusion_jax.cli.failures import WrongUsage


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's actions, each with its options."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, (line, add, _) in ACTIONS.items():
        sub = actions.add_parser(
            name,
            help=line,
            description=line[0].upper() + line[1:] + ".",
            allow_abbrev=False,
        )
        sub.add_argument("url", metavar="URL", help="folder, s3://... or gs://...")
        sub.add_argument(
            "--cache",
            metavar="DIR",
            help="where downloads are kept; default in $FUSION_JAX_DOWNLOADS or ~/.cache",
        )
        # Once more behind the action, where people type them.
        sub.add_argument(
            "--json",
            action="store_true",
            default=argparse.SUPPRESS,
            help="print JSON for machines",
        )
        sub.add_argument(
            "--quiet",
            action="store_true",
            default=argparse.SUPPRESS,
            help="print the result and nothing else",
        )
        add(sub)


def run(options: argparse.Namespace) -> None:
    """Runs one action."""
    ACTIONS[options.action][2](options)


def _add_init(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base",
        required=True,
        metavar="MODEL",
        help="pretrained encoder: folder, package:NAME/DIR or hub id",
    )


def _init(options: argparse.Namespace) -> None:
    from fusion_jax.collaboration.repository import init_repository

    base = init_repository(options.url, options.base, cache=options.cache).base(0)
    record = {"url": options.url, "round": 0, "sha256": base.weights.sha256}
    _tell(options, record, f"base 0: {base.weights.sha256} ({options.url})")


def _add_contribute(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", required=True, metavar="DIR", help="the task's folder; stays here")
    add("--task", default="", help="name of the task; the folder's without it")
    add("--contributor", default="", metavar="ID", help="who; the task's name without")
    add(
        "--model",
        metavar="DIR",
        help="hand in this model, fine-tuned from the newest base, instead of training",
    )
    add("--seed", type=int, default=0, help="of the head and the rows' order")
    add("--shots", type=int, default=0, help="training rows in all; 0 = all")
    add("--max-length", type=int, default=128, help="tokens of an input")
    add("--licence", default="", help="of the data, where it may be told")
    add(
        "--workdir",
        default="runs/contributions",
        help="for the training's state and the model with its head",
    )
    add(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="an option of the fine-tuning (epochs, learning_rate, ...)",
    )


def _contribute(options: argparse.Namespace) -> None:
    from fusion_jax import runtime
    from fusion_jax.cli.configure import set_fields
    from fusion_jax.collaboration.repository import open_repository
    from fusion_jax.systems.contribution import contribute
    from fusion_jax.systems.defaults import SOURCE, fit_config
    from fusion_jax.training.config import FitConfig

    fields: Any = fit_config(**SOURCE).lock()
    set_fields(fields, options.set)
    runtime.initialize()
    done = contribute(
        open_repository(options.url, cache=options.cache),
        options.data,
        task=options.task,
        contributor=options.contributor,
        fit=FitConfig(**{**fields.to_dict(), "seed": options.seed}),
        max_length=options.max_length,
        shots=options.shots,
        model=options.model,
        licence=options.licence,
        workdir=options.workdir,
    )
    manifest = done.manifest
    record = {
        "contributor": manifest.contributor,
        "task": manifest.task,
        "round": manifest.base.round,
        "run": manifest.run,
        "sha256": manifest.weights.sha256,
        "scores": dict(manifest.scores),
        "fresh": done.fresh,
        "model": None if done.model is None else str(done.model),
    }
    what = "contributed" if done.fresh else "had contributed already"
    lines = [
        f"{manifest.contributor} {what} {manifest.task} to base {manifest.base.round}: "
        f"{manifest.weights.sha256}"
    ]
    if done.model is not None:
        lines.append(f"model with its head, for yourself: {done.model}")
    _tell(options, record, "\n".join(lines))


def _add_fuse(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--method", default="mean", help="mean, or a method of fusion-jax merge")
    add(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the method",
    )
    add("--server-rate", type=float, default=1.0, help="1 is the paper's")
    add(
        "--optimizer",
        default="none",
        help="of the server: none, momentum (FedAvgM) or adam (FedAdam)",
    )
    add(
        "--discount",
        type=float,
        default=0.25,
        help="late contributions weigh 1 / (1 + discount * rounds)",
    )
    add("--clip", type=float, default=0.0, help="longest delta, by the median; 0 = off")
    add("--quorum", type=int, default=1, metavar="N", help="contributions needed")
    add(
        "--deadline",
        type=float,
        metavar="SECONDS",
        help="wait so long for the quorum, then take what is there",
    )
    add(
        "--limit",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a limit of the screen (max_relative_norm, deviations, max_age, ...)",
    )
    add(
        "--round",
        type=int,
        metavar="N",
        help="with --without: make base N anew, into a repository of its own",
    )
    add(
        "--without",
        action="append",
        default=[],
        metavar="ID",
        help="leave out a contributor, or weights by 8 digits of their hash",
    )
    add("--reason", default="", help="with --without: why, for the manifest")


def _fuse(options: argparse.Namespace) -> None:
    from fusion_jax.collaboration.forks import fork
    from fusion_jax.collaboration.fusing import FuseOptions
    from fusion_jax.collaboration.repository import open_repository
    from fusion_jax.collaboration.rounds import fuse_round
    from fusion_jax.collaboration.screening import Limits

    if bool(options.without) != (options.round is not None):
        raise WrongUsage("--round and --without go together: which base, without whom")
    repository = open_repository(options.url, cache=options.cache)
    if options.without:
        made = fork(repository, options.round, options.without, reason=options.reason)
        base = made.base(0)
        text = f"{made.url}: base {options.round} without {', '.join(options.without)}"
        record = {"url": made.url, "round": 0, "sha256": base.weights.sha256}
        _tell(options, record, f"{text}: {base.weights.sha256}")
        return
    base = fuse_round(
        repository,
        FuseOptions(
            method=options.method,
            options=_pairs(options.set, "--set"),
            server_rate=options.server_rate,
            optimizer=options.optimizer,
            discount=options.discount,
            clip=options.clip,
        ),
        limits=_limits(Limits, options.limit),
        quorum=options.quorum,
        deadline=options.deadline,
    )
    record = {
        "url": repository.url,
        "round": base.round,
        "sha256": base.weights.sha256,
        "parts": {part.contributor: part.weight for part in base.parts},
        "rejected": {r.contributor or r.manifest: r.reasons for r in base.rejected},
        "memory": dict(base.memory),
        "seconds": dict(base.seconds),
    }
    lines = [
        f"base {base.round} of {len(base.parts)} contributions: {base.weights.sha256}"
    ]
    lines += [
        f"  rejected {one.contributor or one.manifest}: {'; '.join(one.reasons)}"
        for one in base.rejected
    ]
    _tell(options, record, "\n".join(lines))


def _add_status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--report", metavar="FILE.html", help="write a page with the rounds, too"
    )


def _status(options: argparse.Namespace) -> None:
    from fusion_jax.collaboration.repository import open_repository
    from fusion_jax.collaboration.status import status

    found = status(open_repository(options.url, cache=options.cache))
    if options.report:
        from fusion_jax.reports.repository import write_repository_report

        write_repository_report(found, options.report)
    _tell(options, found, _status_text(found))


def _status_text(found: Mapping[str, Any]) -> str:
    from fusion_jax.reports.repository import rounds_table
    from fusion_jax.reports.tables import to_text

    lines = [f"{found['url']}: base {found['round']}", to_text(rounds_table(found))]
    for base in found["bases"]:
        lines += [
            f"round {base['round']} rejected {one['contributor'] or one['manifest']}: "
            f"{'; '.join(one['reasons'])}"
            for one in base["rejected"]
        ]
    for one in found["waiting"]:
        told = one["fault"] or (
            f"{one['contributor']}, {one['task']}, from base {one['base_round']}"
        )
        lines.append(f"waiting: {told}")
    lines += [f"fork: {name}" for name in found["forks"]]
    return "\n".join(lines)


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--round", type=int, metavar="N", help="the newest without it")
    parser.add_argument("--out", required=True, metavar="DIR", help="model folder")
    parser.add_argument("--overwrite", action="store_true", help="replace --out")


def _export(options: argparse.Namespace) -> None:
    from fusion_jax.collaboration.export import export
    from fusion_jax.collaboration.repository import open_repository

    repository = open_repository(options.url, cache=options.cache)
    round_ = repository.current().round if options.round is None else options.round
    folder = export(repository, round_, options.out, overwrite=options.overwrite)
    record = {
        "round": round_,
        "folder": str(folder),
        "sha256": repository.base(round_).weights.sha256,
    }
    _tell(options, record, f"base {round_}: {folder}")


def _pairs(given: list[str], option: str) -> dict[str, Any]:
    """['a=1'] -> {'a': 1}; a value that is no JSON is a word."""
    found = {}
    for pair in given:
        name, equals, text = pair.partition("=")
        if not (name and equals):
            raise WrongUsage(f"{option} {pair}: write {option} NAME=VALUE")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found


def _limits(kind: Callable[..., Any], given: list[str]) -> Any:
    import dataclasses

    known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    pairs = _pairs(given, "--limit")
    unknown = [name for name in pairs if name not in known]
    if unknown:
        raise WrongUsage(
            f"--limit {', '.join(unknown)}: unknown; there are {', '.join(known)}"
        )
    return kind(**pairs)


def _tell(options: argparse.Namespace, record: Mapping[str, Any], text: str) -> None:
    print(json.dumps(record) if options.json else text)


ACTIONS: Mapping[str, tuple[str, Callable[..., None], Callable[..., None]]] = {
    "init": ("make a repository of a pretrained model", _add_init, _init),
    "contribute": (
        "fine-tune the newest base on your data and hand in its body",
        _add_contribute,
        _contribute,
    ),
    "fuse": ("screen and fuse what was handed in", _add_fuse, _fuse),
    "status": ("rounds, contributors, verdicts", _add_status, _status),
    "export": ("a base as a model folder", _add_export, _export),
}
"""Action -> (what it does, its options, how to run it)."""
