r"""Attacks on a round of ColD Fusion: what the screen says, what each fuse makes of it.

    python scripts/bench/attacks.py --repository RUN/repository --round 4 \
        --data DIR --workdir W [--table TABLE.md]

RUN is that of `launch/cold_fusion.py` on the tasks of DIR. The round in which its
contributors, each with a task of its own, had handed in to base 4 is opened again in a
copy. Then one attacker at a time hands something in beside them:

- the screen looks at it beside the honest ones, with its default limits;
- every fuse rule fuses it with the honest ones *without* a screen, and the fused body
  is scored by probes: a linear head, trained on the frozen body and scored on test rows
  that no contributor had. Mean accuracy over --probes, some of which are tasks of
  honest contributors.

Beside them: the base, the honest contributors alone, and one more honest one in the
attacker's place, whose delta the attacks are made of. A line for each measurement
stands in W and is not made again. Prints the record as JSON, and tables to stderr or
--table.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attack_contributions import ATTACKS, Scene, hand_in, tensors_of
from attack_round import Probes, Sizes, reopened, waiting
from attack_table import ALONE, BASE, SCREEN, tables
from merge import about

from fusion_jax import runtime
from fusion_jax.checkpoints.tensors import CheckpointError
from fusion_jax.collaboration.fusing import FuseOptions, Member, fuse
from fusion_jax.collaboration.repository import Found, Repository
from fusion_jax.collaboration.rounds import screen_all
from fusion_jax.collaboration.screening import Limits
from fusion_jax.systems.workdir import content_hash

HONEST = ("sst2", "subj", "ag_news", "mpqa", "tweeteval_emotion", "tweeteval_offensive")
RULES: Mapping[str, FuseOptions] = {
    "mean": FuseOptions(),
    "mean, clip 2": FuseOptions(clip=2),
    "norm_clipped_mean": FuseOptions("norm_clipped_mean"),
    "coordinate_median": FuseOptions("coordinate_median"),
    "trimmed_mean": FuseOptions("trimmed_mean", {"trim": 0.2}),
    "geometric_median": FuseOptions("geometric_median"),
    "krum": FuseOptions("krum", {"num_byzantine": 1}),
    "multi-krum of 4": FuseOptions("krum", {"num_byzantine": 1, "num_selected": 4}),
}
"""Column of the table -> how it fuses."""


def main() -> None:
    """Trains what is missing, attacks, prints."""
    options = parse()
    runtime.initialize()
    options.workdir.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()[0]
    sizes = Sizes(options.max_length, options.probe_train, options.probe_test)
    names = [*options.honest, options.attacker]
    made_by = content_hash(url=options.repository, round=options.round, names=names)
    place = options.workdir / made_by[:12]
    repository = reopened(options.repository, options.round, names, place)
    probes = Probes(repository, options.data, options.probes, sizes)
    found = waiting(repository, names)
    attacker = found.pop(options.attacker)
    scene = scene_of(repository, attacker, found[options.honest[0]])
    made_by = content_hash(probes=options.probes, sizes=sizes)
    lines = Lines(place / f"attacks-{made_by[:12]}.jsonl")
    base = repository.fetch(repository.current().weights)
    lines.once(BASE, BASE, lambda: scored(probes(base)))
    members = {ALONE: members_of(repository, found)}
    for name in options.attacks:
        bad, file = hand_in(repository, name, scene, place / "attacks")
        lines.once(name, SCREEN, lambda bad=bad: screened(repository, found, bad))
        members[name] = [*members[ALONE], member_of(repository, bad, file)]
    for rule in options.rules:
        for name, those in members.items():
            lines.once(
                name,
                rule,
                lambda rule=rule, those=those: fused(repository, those, rule, probes),
            )
    record = {
        **about(options),
        "load": load,
        "sizes": sizes._asdict(),
        "honest": options.honest,
        "attacker": options.attacker,
        "probes": options.probes,
        "attacks": {name: ATTACKS[name].told for name in options.attacks},
        "rules": options.rules,
        "found": lines.found,
    }
    told = tables(record)
    if options.table:
        options.table.write_text(told, encoding="utf-8")
    else:
        print(told, file=sys.stderr)
    print(json.dumps(record, indent=2))


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repository", required=True, metavar="URL")
    parser.add_argument("--round", type=int, required=True, help="of the base")
    parser.add_argument("--data", type=Path, required=True, help="folder of tasks")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument(
        "--honest",
        nargs="+",
        default=HONEST,
        metavar="NAME",
        help="contributors of the round",
    )
    parser.add_argument("--attacker", default="cr", help="one more, who turns bad")
    parser.add_argument(
        "--probes", nargs="+", default=["sst2", "tweeteval_emotion", "isear"]
    )
    parser.add_argument(
        "--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS), metavar="NAME"
    )
    parser.add_argument(
        "--rules", nargs="+", choices=RULES, default=list(RULES), metavar="RULE"
    )
    parser.add_argument("--max-length", type=int, default=48)
    parser.add_argument("--probe-train", type=int, default=200, help="rows of a head")
    parser.add_argument("--probe-test", type=int, default=300)
    parser.add_argument("--table", type=Path, metavar="FILE.md")
    # Not of this benchmark; `merge.about` asks for them.
    parser.set_defaults(peers=None, size="full", repeats=1)
    options = parser.parse_args()
    if options.attacker in options.honest:
        parser.error("--attacker: one of --honest; choose another contributor")
    options.workdir = options.workdir.absolute()
    return options


class Lines:
    """Measurements in a file, a line each; what is there is not measured again."""

    def __init__(self, file: Path) -> None:
        """Reads what is there."""
        self._file = file
        self.found: dict[str, dict[str, Any]] = {}
        if file.is_file():
            for line in file.read_text().splitlines():
                self._keep(**json.loads(line))

    def once(self, attack: str, rule: str, measure: Callable[[], dict]) -> None:
        """Measures and writes a line, unless there is one."""
        if rule in self.found.get(attack, {}):
            return
        line = {"attack": attack, "rule": rule, "said": measure()}
        with self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._keep(**line)

    def _keep(self, attack: str, rule: str, said: dict[str, Any]) -> None:
        self.found.setdefault(attack, {})[rule] = said


def scene_of(repository: Repository, own: Found, other: Found) -> Scene:
    """What the attacker can have."""
    files = [
        repository.current().weights,
        repository.base(0).weights,
        *(found.manifest.weights for found in (own, other) if found.manifest),
    ]
    return Scene(*(tensors_of(repository.fetch(file)) for file in files))


def screened(
    repository: Repository, honest: Mapping[str, Found], bad: Found
) -> dict[str, Any]:
    """The screen of a round with one attacker: whom it refuses, and why.

    Whoever fails alone is not looked at beside the others: that would say no more.
    """
    parent, limits, options = repository.current(), Limits(), FuseOptions()
    verdicts = screen_all(repository, parent, [bad], limits, options).verdicts
    if verdicts[bad.name].accepted:
        together = [*honest.values(), bad]
        verdicts = screen_all(repository, parent, together, limits, options).verdicts
    names = {found.name: name for name, found in honest.items()} | {
        bad.name: "attacker"
    }
    return {
        "refused": {
            names[name]: list(verdict.reasons)
            for name, verdict in verdicts.items()
            if not verdict.accepted
        },
        "numbers": dict(verdicts[bad.name].numbers),
    }


def members_of(repository: Repository, found: Mapping[str, Found]) -> list[Member]:
    """The honest contributions as a fuse takes them."""
    files = [one.manifest.weights for one in found.values() if one.manifest]
    return [Member(file.sha256, repository.fetch(file)) for file in files]


def member_of(repository: Repository, bad: Found, file: Path) -> Member:
    """The attacker's, as a fuse without a screen would take it."""
    assert bad.manifest is not None
    age = repository.current().round - bad.manifest.base.round
    own = repository.base(bad.manifest.base.round).weights
    return Member(
        bad.manifest.weights.sha256, file, age, repository.fetch(own) if age else None
    )


def fused(
    repository: Repository, members: Sequence[Member], rule: str, probes: Probes
) -> dict[str, Any]:
    """Accuracies of a fuse, or why there is none."""
    base = repository.current()
    with repository.scratch() as place:
        out = place / "fused.safetensors"
        try:
            fuse(
                repository.fetch(base.weights),
                members,
                RULES[rule],
                out,
                config=repository.base_folder(base.round),
            )
        except (CheckpointError, ValueError) as error:
            return {"refused": str(error).replace(str(place), "")[:400]}
        return scored(probes(out))


def scored(accuracy: Mapping[str, float]) -> dict[str, Any]:
    """Accuracies and their mean."""
    mean = sum(accuracy.values()) / len(accuracy)
    return {"accuracy": dict(accuracy), "mean": mean}


if __name__ == "__main__":
    main()
