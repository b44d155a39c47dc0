"""fusion-jax peft: modules in and out of other libraries' files, merged, ported."""

import argparse
from collections.abc import Callable, Mapping

from fusion_jax.cli import peft_files, peft_merge, peft_port
from fusion_jax.cli.printing import add_output_options


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
        add_output_options(sub)
        add(sub)


def run(options: argparse.Namespace) -> None:
    """Runs one action."""
    ACTIONS[options.action][2](options)


ACTIONS: Mapping[str, tuple[str, Callable[..., None], Callable[..., None]]] = {
    "show": (
        "say what a module is, and whether it fits a host",
        peft_files.add_show,
        peft_files.show,
    ),
    "import": (
        "read a folder of Hugging Face peft or AdapterHub",
        peft_files.add_import,
        peft_files.import_module,
    ),
    "export": (
        "write a module for Hugging Face peft or AdapterHub",
        peft_files.add_export,
        peft_files.export_module,
    ),
    "merge": (
        "merge modules of one kind into one",
        peft_merge.add_arguments,
        peft_merge.run,
    ),
    "port": (
        "make a module of one host a module of another",
        peft_port.add_arguments,
        peft_port.run,
    ),
}
"""Action -> (what it does, its options, how to run it)."""
