"""What is wrong with a dataless fusion's config and tasks, before any training."""

import math
from collections.abc import Sequence

from fusion_jax.config import Config
from fusion_jax.data import Task
from fusion_jax.merging.fisher import NORMS
from fusion_jax.systems.dataless_groups import Group, groups_of
from fusion_jax.systems.dataless_outcome import METHODS
from fusion_jax.training.fisher import ESTIMATORS

_EXACT = ("single_label", "multi_label")


def check_options(config: Config) -> None:
    """Raises ValueError with every option that makes no sense."""
    wrong = []
    if config.seeds < 1:
        wrong.append(f"seeds: {config.seeds} asked for; at least one run is needed")
    for name, choices in (
        ("labels", ("shared", "private")),
        ("head_init", ("same", "different")),
    ):
        if config[name] not in choices:
            wrong.append(f"{name}: '{config[name]}' is not one of {', '.join(choices)}")
    unknown = [name for name in config.methods if name not in METHODS]
    if unknown or not config.methods:
        wrong.append(
            f"methods: {', '.join(unknown) or 'none'}; there are {', '.join(METHODS)}"
        )
    for name in ("alphas", "cascade_alphas", "mats_alphas"):
        bad = [x for x in config[name] if not (_is_number(x) and 0 <= x <= 1)]
        if bad or not config[name]:
            wrong.append(f"{name}: {bad or 'none'}; give numbers from 0 to 1")
    for name in ("scales", "ties_scales"):
        bad = [x for x in config[name] if not _is_number(x)]
        if bad or not config[name]:
            wrong.append(f"{name}: {bad or 'none'}; give numbers")
    statistics = config.statistics
    for name, value in (
        ("ridge", config.ridge),
        ("mats_iterations", config.mats_iterations),
        *(
            (f"statistics.{name}", statistics[name])
            for name in ("examples", "cascade_examples", "fisher_examples")
        ),
    ):
        if not (_is_number(value) and value >= 0):
            wrong.append(f"{name}: {value}; give a number that is not negative")
    for name, choices in (
        ("estimator", ESTIMATORS),
        ("fisher_split", ("train", "dev")),
        ("normalize", NORMS),
    ):
        if statistics[name] not in choices:
            wrong.append(
                f"statistics.{name}: '{statistics[name]}' is not one of "
                f"{', '.join(choices)}"
            )
    both = sorted(set(config.tasks) & set(config.out_of_domain))
    if both:
        wrong.append(
            f"out_of_domain: {', '.join(both)} are among the tasks, so their owners "
            "know them"
        )
    if config.halves.rows and (config.labels == "private" or config.out_of_domain):
        wrong.append(
            "halves: owners of one task share its labels, and no domain is unseen; "
            "set labels to 'shared' and leave out out_of_domain"
        )
    if wrong:
        raise ValueError("\n".join(wrong))


def check_tasks(config: Config, owners: Sequence[Task], unseen: Sequence[Task]) -> None:
    """Raises ValueError with every task that cannot take its part.

    Args:
      config: of the system, as `check_options` lets it pass.
      owners: a task for each owner.
      unseen: tasks without an owner.
    """
    wrong = []
    if config.labels == "shared" and not config.halves.rows:
        wrong += different_labels([*owners, *unseen])
    wrong += [f"{t.name}: no test split to test on" for t in unseen if not _tested(t)]
    if "fisher" in config.methods and config.statistics.estimator == "true":
        kinds = sorted({task.kind for task in owners if task.kind not in _EXACT})
        if kinds:
            wrong.append(
                f"statistics.estimator: 'true' is for {', '.join(_EXACT)}, and there "
                f"are tasks of kind {', '.join(kinds)}; set it to sampled or empirical"
            )
    groups = planned_groups(config, [task.name for task in owners])
    names = [group.name for group in groups]
    lost = [name for name in config.multitask_groups if name not in names]
    if "multitask" in config.methods and lost and tuple(lost) != ("all",):
        wrong.append(
            f"multitask_groups: {', '.join(lost)} are no groups; there are "
            f"{', '.join(names)}"
        )
    if wrong:
        raise ValueError("dataless fusion:\n  " + "\n  ".join(wrong))


def planned_groups(config: Config, names: Sequence[str]) -> list[Group]:
    """The groups that are merged; the halves of a task are a group of their own.

    Args:
      config: of the system.
      names: of the owners' tasks.

    Raises:
      ValueError: as `groups_of`.
    """
    if config.halves.rows:
        return [
            Group(one.removesuffix("_a"), (one, other), ())
            for one, other in zip(names[::2], names[1::2], strict=True)
        ]
    return groups_of(
        names,
        config.merge,
        unseen=tuple(config.out_of_domain),
        shared_labels=config.labels == "shared",
    )


def different_labels(tasks: Sequence[Task]) -> list[str]:
    """What keeps tasks from one label space: their kinds, labels and metrics."""
    first = tasks[0]
    return [
        f"{task.name}: {what} {mine}, {first.name} has {theirs}; map the labels with "
        "data.tasks, or set labels to 'private'"
        for task in tasks[1:]
        for what, mine, theirs in (
            ("kind", task.kind, first.kind),
            ("labels", ", ".join(task.labels), ", ".join(first.labels)),
            ("metrics", task.metrics, first.metrics),
        )
        if mine != theirs
    ]


def _tested(task: Task) -> bool:
    return "test" in task.splits


def _is_number(value: object) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
    )
