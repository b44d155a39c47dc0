"""fusion-jax peft port: a module of one host in, a module of another out."""

import argparse
from pathlib import Path
from typing import Any

from fusion_jax.cli.failures import WrongUsage
from fusion_jax.cli.merge import setting
from fusion_jax.cli.peft_options import check_out
from fusion_jax.cli.printing import table_text, tell


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The action's options."""
    parser.add_argument("--methods", action="store_true", help="list them and stop")
    parser.add_argument(
        "module", nargs="?", type=Path, metavar="MODULE", help="folder, any form"
    )
    parser.add_argument("--origin", metavar="MODEL", help="the module's host")
    parser.add_argument("--receiver", metavar="MODEL", help="the host that gets it")
    parser.add_argument("--method", default="copy", help="copy, skip, subspace, ...")
    parser.add_argument(
        "--depth", default="skip", help="what a layer takes: skip (one), average"
    )
    parser.add_argument(
        "--magnitude",
        default="relative",
        help="of DoRA: relative (by the receiver's norms) or absolute",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the method",
    )
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="task folder whose training text both hosts read: correlation, ridge",
    )
    parser.add_argument(
        "--tokens", type=int, default=4096, help="of that text, about how many"
    )
    parser.add_argument(
        "--max-length", type=int, default=64, help="tokens of an input of that text"
    )
    parser.add_argument(
        "--control",
        help="draw the entries anew, but for a head's: gaussian, permuted, ...",
    )
    parser.add_argument("--seed", type=int, default=0, help="of --control")
    parser.add_argument(
        "--strict-host",
        action="store_true",
        help="an origin with other weights is an error, not a warning",
    )
    parser.add_argument("--family", help="of the origin, where files leave it open")
    parser.add_argument(
        "--form", choices=("fusion_jax", "peft", "adapterhub"), default="fusion_jax"
    )
    parser.add_argument("--out", type=Path, help="folder of the ported module")
    parser.add_argument("--overwrite", action="store_true", help="replace --out")


def run(options: argparse.Namespace) -> None:
    """Ports, and prints where the module lies."""
    if options.methods:
        print(_methods(options.json))
        return
    _check_usage(options)
    import jax

    from fusion_jax import trees
    from fusion_jax.checkpoints import huggingface
    from fusion_jax.checkpoints.modules import host_of, load_module, save_module
    from fusion_jax.peft.combine_config import placed
    from fusion_jax.peft.controls import CONTROLS
    from fusion_jax.peft.low_rank import own_leaves
    from fusion_jax.peft.module import with_module
    from fusion_jax.peft.port import port

    check_out(options)
    origin = huggingface.load(options.origin)
    receiver = huggingface.load(options.receiver)
    module = load_module(
        options.module,
        host=host_of(origin),
        strict_host=options.strict_host,
        family=options.family,
    )
    source, target = _hosts(options, origin, receiver)
    ported = port(
        module,
        source,
        target,
        options.method,
        depth=options.depth,
        magnitude=options.magnitude,
        **dict(setting(text) for text in options.set),
    )
    if ported.config.targets:  # they may name layers that the receiver lacks
        named, _ = own_leaves(ported)
        ported = ported._replace(config=placed(ported.config, named))
    if options.control:
        key = jax.random.key(options.seed)
        # The head is no part of the question what the module knows.
        head, own = trees.partition(ported.params, r"head/.*")
        drawn = CONTROLS[options.control](own, key)
        ported = ported._replace(params=with_module(head, drawn))
    save_module(options.out, ported, form=options.form)
    record = {
        "method": options.method,
        "origin": str(options.origin),
        "receiver": str(options.receiver),
        "control": options.control,
        "out": str(options.out),
    }
    said = f"{options.method}: {options.origin} to {options.receiver}"
    tell(options, record, f"{said}\nmodule: {options.out}")


def _hosts(options: argparse.Namespace, *checkpoints: Any) -> list[Any]:
    """Both hosts; with what they say of the same tokens where --data is given."""
    from fusion_jax.checkpoints.modules import host_of
    from fusion_jax.peft.port_host import Host

    hosts = [
        Host(
            one.params, one.config.num_layers, one.config.num_heads, host_of(one).about
        )
        for one in checkpoints
    ]
    if not options.data:
        return hosts
    import jax
    import numpy as np

    from fusion_jax.checkpoints import huggingface
    from fusion_jax.data import load_task
    from fusion_jax.data.tokenise import load_tokenizer
    from fusion_jax.systems.portability_states import states_of
    from fusion_jax.systems.problem import make_problem

    task = load_task(options.data)
    problems = [
        make_problem(
            task,
            one,
            load_tokenizer(one.path),
            max_length=options.max_length,
            splits=("train",),
        )
        for one in checkpoints
    ]
    ids = [one.encoded["train"].columns["input_ids"] for one in problems]
    if not all(map(np.array_equal, *ids)):
        raise ValueError(
            "--data: the hosts make other tokens of one text, so that what they say of "
            "them cannot be compared; take --method subspace, or hosts of one tokenizer"
        )
    key = jax.random.key(0)  # of heads, which no state sees
    return [
        host._replace(
            states=states_of(
                problem,
                one,
                huggingface.attach_encoder(problem.model, one.params, key),
                options.tokens,
            )
        )
        for host, one, problem in zip(hosts, checkpoints, problems, strict=True)
    ]


def _check_usage(options: argparse.Namespace) -> None:
    from fusion_jax.peft.controls import CONTROLS
    from fusion_jax.peft.port_table import PORTS

    faults = [
        f"{name}: none given"
        for name, value in (
            ("MODULE", options.module),
            ("--origin", options.origin),
            ("--receiver", options.receiver),
            ("--out", options.out),
        )
        if not value
    ]
    if options.method not in PORTS:
        faults.append(f"--method {options.method}: not one of {', '.join(PORTS)}")
    elif PORTS[options.method].needs == "states" and not options.data:
        faults.append(
            f"--method {options.method} compares what both hosts say of the same "
            "tokens: give --data, a task folder"
        )
    if options.control and options.control not in CONTROLS:
        faults.append(f"--control {options.control}: not one of {', '.join(CONTROLS)}")
    if faults:
        raise WrongUsage("\n".join(faults))


def _methods(as_json: bool) -> str:
    from fusion_jax.peft.port_table import PORTS

    rows = {
        name: {
            "what": way.what,
            "needs": way.needs,
            "options": dict(way.options),
            "reference": way.reference,
        }
        for name, way in PORTS.items()
    }
    return table_text(
        rows,
        lambda row: f"needs {row['needs']:8}  {row['what']}; {row['reference']}",
        as_json,
    )
