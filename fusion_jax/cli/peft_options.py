"""Options that the actions of fusion-jax peft share, and what they read by them."""

import argparse
from pathlib import Path
from typing import Any

from fusion_jax.cli.failures import WrongUsage


def add_host(parser: argparse.ArgumentParser) -> None:
    """--host and what goes with it."""
    parser.add_argument(
        "--host", metavar="MODEL", help="model folder, package:NAME/DIR or hub id"
    )
    parser.add_argument(
        "--strict-host",
        action="store_true",
        help="other weights than those it was trained on are an error, not a warning",
    )
    parser.add_argument(
        "--family", help="of the host, where files leave it open: bert, roberta, ..."
    )


def add_out(parser: argparse.ArgumentParser) -> None:
    """--out and --overwrite."""
    parser.add_argument("--out", required=True, type=Path, help="folder of the result")
    parser.add_argument("--overwrite", action="store_true", help="replace --out")


def check_out(options: argparse.Namespace) -> None:
    """Refuses an --out that is there, or that is one of the inputs."""
    from fusion_jax.checkpoints.merge import refuse_existing

    refuse_existing(options.out, overwrite=options.overwrite)


def read_host(options: argparse.Namespace) -> Any:
    """(checkpoint, its facts) of --host, or (None, None)."""
    if options.host is None:
        return None, None
    from fusion_jax.checkpoints import huggingface
    from fusion_jax.checkpoints.modules import host_of

    checkpoint = huggingface.load(options.host)
    return checkpoint, host_of(checkpoint)


def read_module(
    options: argparse.Namespace, folder: Path, host: Any, **more: Any
) -> Any:
    """The module of a folder, held against --host if there is one."""
    from fusion_jax.checkpoints.modules import load_module

    return load_module(
        folder,
        host=host,
        strict_host=options.strict_host and host is not None,
        family=options.family,
        **more,
    )


def need_host(options: argparse.Namespace) -> None:
    """Refuses --strict-host where there is no host to be strict about."""
    if options.strict_host and options.host is None:
        raise WrongUsage("--strict-host: give --host MODEL to hold the module against")
