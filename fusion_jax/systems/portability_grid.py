"""The grid of a portability study: what is trained, and what is run together."""

from collections.abc import Sequence
from typing import NamedTuple

from fusion_jax.config import Config
from fusion_jax.systems.portability_hosts import host_names

ARROW = ":"
"""Between origin and receiver, in pairs of hosts and combinations of data."""


class Origin(NamedTuple):
    """A module that is trained once: technique, host, task, seed."""

    technique: str
    host: str
    task: str
    seed: int

    @property
    def name(self) -> str:
        """'lora:minilm:books:0', as `modules` of the config has it."""
        return f"{self.technique}:{self.host}:{self.task}:{self.seed}"


class Lane(NamedTuple):
    """One module of a cell: where it comes from, and how it begins."""

    host: str
    task: str
    init: str


class Cell(NamedTuple):
    """Runs that share a frozen host, a technique and every batch.

    Attributes:
      technique: name.
      host: the receiver.
      task: the receiver's data.
      seed: of the order of the rows, the inits and the origins.
      lanes: what is trained side by side.
    """

    technique: str
    host: str
    task: str
    seed: int
    lanes: tuple[Lane, ...]

    @property
    def name(self) -> str:
        """'lora-minilm-books-0'."""
        return f"{self.technique}-{self.host}-{self.task}-{self.seed}"


def pairs_of(config: Config) -> list[tuple[str, str]]:
    """(origin, receiver) hosts: those named, or all of different hosts.

    Raises:
      ValueError: a pair that is none, or of hosts that are not there; all are listed.
    """
    return _ordered(config.pairs, host_names(config), "pairs", "hosts", equal=False)


def combinations_of(config: Config, tasks: Sequence[str]) -> list[tuple[str, str]]:
    """(origin's, receiver's) data: those named, or all, the same data among them.

    Raises:
      ValueError: as `pairs_of`.
    """
    return _ordered(config.combinations, tasks, "combinations", "tasks", equal=True)


def seeds_of(config: Config) -> range:
    """The seeds of the grid."""
    return range(config.seed, config.seed + config.seeds)


def cells_of(config: Config, tasks: Sequence[str]) -> list[Cell]:
    """All cells; of a technique, a seed after another."""
    pairs, combinations = pairs_of(config), combinations_of(config, tasks)
    cells = []
    for technique in config.techniques:
        for seed in seeds_of(config):
            for host in dict.fromkeys(receiver for _, receiver in pairs):
                for task in dict.fromkeys(receiver for _, receiver in combinations):
                    lanes = tuple(
                        Lane(origin, data, init)
                        for origin, receiver in pairs
                        if receiver == host
                        for data, received in combinations
                        if received == task
                        for init in config.inits
                    )
                    cells.append(Cell(technique, host, task, seed, lanes))
    return cells


def origins_of(cells: Sequence[Cell]) -> list[Origin]:
    """The modules that the cells begin from, each once."""
    return list(
        dict.fromkeys(
            Origin(cell.technique, lane.host, lane.task, cell.seed)
            for cell in cells
            for lane in cell.lanes
        )
    )


def _ordered(
    named: Sequence[str], known: Sequence[str], field: str, what: str, *, equal: bool
) -> list[tuple[str, str]]:
    if not named:
        return [(a, b) for a in known for b in known if equal or a != b]
    found, wrong = [], []
    for text in named:
        one, arrow, other = text.partition(ARROW)
        lost = sorted({one, other} - set(known))
        if not arrow:
            wrong.append(f"'{text}': write ORIGIN{ARROW}RECEIVER")
        elif lost:
            wrong.append(
                f"'{text}': {', '.join(lost)} is not among the {what} "
                f"({', '.join(known)})"
            )
        else:
            found.append((one, other))
    if wrong:
        raise ValueError(f"{field}: " + "; ".join(wrong))
    return list(dict.fromkeys(found))
