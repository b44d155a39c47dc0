"""The tasks of a dataless fusion: those of the owners, and unseen ones."""

from dataclasses import replace

from fusion_jax.config import Config
from fusion_jax.data import Task
from fusion_jax.data.halves import non_iid_halves
from fusion_jax.systems.tasks import cut, read_tasks, sized


def owners_tasks(config: Config, seed: int) -> list[Task]:
    """A task for every owner, in the order of the config.

    Args:
      config: of the system: `tasks`, `shots`, `halves`, sizes.
      seed: of every draw.

    Raises:
      TaskError: as the reader says.
    """
    # A hub or folder may hold more; every one of them is an owner then.
    unseen = set(config.out_of_domain)
    named = tuple(config.tasks)
    tasks = [
        task
        for name, task in read_tasks(config.data, named, seed).items()
        if named or name not in unseen
    ]
    halves = config.halves
    made = []
    for task in tasks:
        task = sized(
            task,
            # Halves draw their own rows.
            rows=0 if halves.rows else config.shots,
            max_dev_rows=config.max_dev_rows,
            max_test_rows=config.max_test_rows,
            seed=seed,
        )
        if halves.rows:
            made += non_iid_halves(task, halves.rows, halves.share, seed)
        else:
            made.append(task)
    return made


def unseen_tasks(config: Config, seed: int) -> list[Task]:
    """Tasks without an owner: their test splits, of which nothing is learned."""
    if not config.out_of_domain:
        return []
    tasks = read_tasks(config.data, tuple(config.out_of_domain), seed, dev=False)
    made = []
    for task in tasks.values():
        tested = {"test": task.splits["test"]} if "test" in task.splits else task.splits
        made.append(
            cut(
                replace(task, splits=tested),
                shots=0,
                max_test_rows=config.max_test_rows,
                seed=seed,
            )
        )
    return made
