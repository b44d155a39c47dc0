"""fusion-jax repository fuse: the next base, or one made anew without somebody."""

import argparse
import dataclasses
import json
from collections.abc import Callable
from typing import Any

from fusion_jax.cli.failures import WrongUsage
from fusion_jax.cli.printing import tell


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The action's options."""
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
        "--optimizer-set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the server's optimizer (momentum, beta1, beta2, tau)",
    )
    add("--seed", type=int, default=0, help="of methods that draw random masks")
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
        "--probe",
        metavar="DIR",
        help="a task that no contributor has: a head on each frozen body is scored; "
        "a body that is much worse than its base is rejected (--limit probe_drop)",
    )
    add("--max-length", type=int, default=128, help="tokens of the probe's inputs")
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
    add("--name", default="", help="with --without: of the repository made, in forks/")


def run(options: argparse.Namespace) -> None:
    """Fuses what was handed in, or makes a base anew without somebody."""
    from fusion_jax.collaboration.forks import fork
    from fusion_jax.collaboration.fusing import FuseOptions
    from fusion_jax.collaboration.repository import open_repository
    from fusion_jax.collaboration.rounds import fuse_round
    from fusion_jax.collaboration.screening import Limits

    if bool(options.without) != (options.round is not None):
        raise WrongUsage("--round and --without go together: which base, without whom")
    repository = open_repository(options.url, cache=options.cache)
    if options.without:
        made = fork(
            repository,
            options.round,
            options.without,
            name=options.name,
            reason=options.reason,
        )
        base = made.base(0)
        text = f"{made.url}: base {options.round} without {', '.join(options.without)}"
        record = {"url": made.url, "round": 0, "sha256": base.weights.sha256}
        tell(options, record, f"{text}: {base.weights.sha256}")
        return
    base = fuse_round(
        repository,
        FuseOptions(
            method=options.method,
            options=_pairs(options.set, "--set"),
            server_rate=options.server_rate,
            optimizer=options.optimizer,
            optimizer_options=_pairs(options.optimizer_set, "--optimizer-set"),
            seed=options.seed,
            discount=options.discount,
            clip=options.clip,
        ),
        limits=_limits(Limits, options.limit),
        quorum=options.quorum,
        deadline=options.deadline,
        probe=_probe(options, repository),
    )
    record = {
        "url": repository.url,
        "round": base.round,
        "sha256": base.weights.sha256,
        "parts": [
            {
                "contributor": part.contributor,
                "task": part.task,
                "sha256": part.sha256,
                "weight": part.weight,
            }
            for part in base.parts
        ],
        "rejected": [dataclasses.asdict(rejected) for rejected in base.rejected],
        "notes": list(base.notes),
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
    tell(options, record, "\n".join(lines))


def _probe(options: argparse.Namespace, repository: Any) -> Any:
    if not options.probe:
        return None
    from fusion_jax import runtime
    from fusion_jax.systems.held_out import held_out_probe

    runtime.initialize()
    return held_out_probe(repository, options.probe, max_length=options.max_length)


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
    known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    pairs = _pairs(given, "--limit")
    unknown = [name for name in pairs if name not in known]
    if unknown:
        raise WrongUsage(
            f"--limit {', '.join(unknown)}: unknown; there are {', '.join(known)}"
        )
    return kind(**pairs)
