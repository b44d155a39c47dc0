"""fusion-jax repository: a base model that a group improves, on plain storage."""

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from fusion_jax.cli import repository_contribute, repository_fuse
from fusion_jax.cli.printing import add_output_options, tell


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
            help="where downloads are kept; $FUSION_JAX_DOWNLOADS, or ~/.cache",
        )
        add_output_options(sub)
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
    tell(options, record, f"base 0: {base.weights.sha256} ({options.url})")


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
    tell(options, found, _status_text(found))


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
    tell(options, record, f"base {round_}: {folder}")


ACTIONS: Mapping[str, tuple[str, Callable[..., None], Callable[..., None]]] = {
    "init": ("make a repository of a pretrained model", _add_init, _init),
    "contribute": (
        "fine-tune the newest base on your data and hand in its body",
        repository_contribute.add_arguments,
        repository_contribute.run,
    ),
    "fuse": (
        "screen and fuse what was handed in",
        repository_fuse.add_arguments,
        repository_fuse.run,
    ),
    "status": ("rounds, contributors, verdicts", _add_status, _status),
    "export": ("a base as a model folder", _add_export, _export),
}
"""Action -> (what it does, its options, how to run it)."""
