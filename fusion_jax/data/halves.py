"""One task as two owners would hold it: halves of other label shares."""

import zlib
from dataclasses import replace

import numpy as np

from fusion_jax.data.task import Task, TaskError


def non_iid_halves(task: Task, rows: int, share: float, seed: int) -> tuple[Task, Task]:
    """Two tasks with disjoint training rows and skewed labels, and one dev and test.

    The classes are dealt to the halves in turn, from the most frequent on. A half
    draws `share` of its rows from its own classes and the rest from the other's; where
    a class group runs out, the other fills up.

    Args:
      task: single_label, with train.
      rows: of each half.
      share: of a half's own classes, from 0.5 (alike) to 1 (disjoint labels).
      seed: of the draw.

    Returns:
      Tasks named NAME_a and NAME_b.

    Raises:
      TaskError: another kind, a share outside [0.5, 1], or fewer than 2 * rows rows.

    Reference: Jin et al. 2023, arXiv:2212.09849, whose code calls the
    share niid_label_alpha.
    """
    train = task.rows("train")
    problems = []
    if task.kind != "single_label":
        problems.append(f"kind {task.kind}: only single_label rows have one class")
    if not 0.5 <= share <= 1:
        problems.append(f"share {share}: give a number from 0.5 to 1")
    if not 1 <= rows <= len(train) // 2:
        problems.append(
            f"rows {rows}: {len(train)} training rows make halves of 1 to "
            f"{len(train) // 2}"
        )
    if problems:
        raise TaskError(f"task {task.name!r}: " + "; ".join(problems))
    generator = np.random.Generator(
        np.random.PCG64([seed, zlib.crc32(task.name.encode())])
    )
    classes = np.array([row["target"] for row in train])
    by_size = np.argsort(-np.bincount(classes, minlength=len(task.labels)))
    own = np.isin(classes, by_size[::2])
    pools = [
        list(generator.permutation(np.flatnonzero(own == side))) for side in (1, 0)
    ]
    halves = []
    for side, name in enumerate(("a", "b")):
        wanted = round(share * rows)
        mine = [pools[side].pop() for _ in range(min(wanted, len(pools[side])))]
        # The other owner's own rows are left to it while there are others.
        other = pools[1 - side]
        spare = max(len(other) - (wanted if side == 0 else 0), 0)
        mine += [other.pop() for _ in range(min(rows - len(mine), spare))]
        for pool in (pools[side], other):
            mine += [pool.pop() for _ in range(min(rows - len(mine), len(pool)))]
        chosen = tuple(train[i] for i in sorted(mine))
        halves.append(
            replace(
                task,
                name=f"{task.name}_{name}",
                splits={**task.splits, "train": chosen},
            )
        )
    return halves[0], halves[1]
