"""Which models are merged together, and what the result is tested on."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

GROUPINGS = ("pairs", "all", "leave_one_out")
"""Two of the tasks; all of them; all but one, which is the unseen domain."""


class Group(NamedTuple):
    """Models to merge.

    Attributes:
      name: of the group, for folders and tables.
      members: names of the tasks whose experts are merged.
      unseen: tasks of other domains, in the same label space, that no member saw.
    """

    name: str
    members: tuple[str, ...]
    unseen: tuple[str, ...]


def groups_of(
    names: Sequence[str],
    groupings: Sequence[str],
    *,
    unseen: Sequence[str] = (),
    shared_labels: bool,
) -> list[Group]:
    """The groups of a run, in order, each once.

    Args:
      names: tasks that have an expert, at least two.
      groupings: of `GROUPINGS`.
      unseen: tasks without an expert, on which every group is tested.
      shared_labels: whether tasks have one label space; else nothing is unseen.

    Raises:
      ValueError: fewer than two tasks, an unknown grouping, or one that asks for
        unseen domains where labels differ.
    """
    problems = [f"'{name}'" for name in groupings if name not in GROUPINGS]
    if problems or not groupings:
        raise ValueError(
            f"merge: {', '.join(problems) or 'nothing'} is not among "
            f"{', '.join(GROUPINGS)}"
        )
    if len(names) < 2:
        raise ValueError(
            f"tasks: {', '.join(names) or 'none'}; a merge needs at least two experts"
        )
    if "leave_one_out" in groupings and len(names) < 3:
        raise ValueError(
            f"merge: leave_one_out of {', '.join(names)} leaves one model; it needs "
            "three tasks"
        )
    if not shared_labels and (unseen or "leave_one_out" in groupings):
        raise ValueError(
            "unseen domains need one label space: set labels to 'shared', or leave out "
            "out_of_domain and leave_one_out"
        )
    made = []
    # First, so that of two tasks the one group keeps this name.
    if "all" in groupings:
        made.append(Group("all", tuple(names), tuple(unseen)))
    if "pairs" in groupings:
        for pair in itertools.combinations(names, 2):
            others = [name for name in names if name not in pair]
            tested = tuple((*others, *unseen)) if shared_labels else ()
            made.append(Group("+".join(pair), pair, tested))
    if "leave_one_out" in groupings:
        for left in names:
            members = tuple(name for name in names if name != left)
            made.append(Group(f"without_{left}", members, (left, *unseen)))
    # Of two tasks the pair is all of them; of three, leaving one out makes pairs.
    seen: dict[tuple[str, ...], Group] = {}
    for group in made:
        seen.setdefault(group.members, group)
    return list(seen.values())
