"""What is wrong with a ColD Fusion's config and tasks, before any training."""

from collections.abc import Mapping

from fusion_jax.collaboration import fuse_options as fusing
from fusion_jax.collaboration.jobs import BACKENDS
from fusion_jax.config import Config
from fusion_jax.data import Task
from fusion_jax.systems.cold_defaults import BASELINES, HEADS, STACKED, fuse_options
from fusion_jax.systems.cold_tasks import contributor_name, folds_of
from fusion_jax.training.config import FitConfig

_STAGES = ("fit", "finetune", "few", "probe", "multitask")
_ROUNDS = ("evaluate_rounds", "few_shot_rounds", "frozen_rounds")


def check_options(config: Config) -> None:
    """Raises ValueError with every option that makes no sense."""
    wrong = [
        f"{name}: {config[name]}; at least {least}"
        for name, least in (
            ("seeds", 1),
            ("rounds", 1),
            ("contributors", 1),
            ("few_shot", 1),
            ("folds", 0),
            ("fold", -1),
            ("shots", 0),
            ("together", 0),
            ("workers", 1),
        )
        if config[name] < least
    ]
    if config.folds == 1:
        wrong.append("folds: 1 would leave no task to contribute; 0 or at least 2")
    elif config.fold >= max(config.folds, 0) and config.fold >= 0:
        wrong.append(
            f"fold: {config.fold}, and there are {config.folds} folds, counted from 0; "
            "-1 runs them all"
        )
    if config.head not in HEADS:
        wrong.append(f"head: '{config.head}' is not one of {', '.join(HEADS)}")
    backends = (STACKED, *BACKENDS)
    if config.backend not in backends:
        wrong.append(f"backend: '{config.backend}' is not one of {', '.join(backends)}")
    elif config.backend != STACKED and config.head == "kept":
        wrong.append(
            f"head: a command of its own ({config.backend}) begins with a fresh head; "
            "'kept' goes with backend 'stacked'"
        )
    unknown = [name for name in config.baselines if name not in BASELINES]
    if unknown:
        wrong.append(
            f"baselines: {', '.join(unknown)}; there are {', '.join(BASELINES)}"
        )
    for name in _ROUNDS:
        last = config.rounds
        bad = [r for r in config[name] if not -last - 1 <= r <= last]
        if bad:
            wrong.append(
                f"{name}: {bad}; bases are numbered 0 to {last}, -1 is the last"
            )
    for name in _STAGES:
        try:
            FitConfig(**config[name].to_dict())
        except ValueError as error:
            wrong.append(f"{name}: {error}")
    probe = config.probe
    if probe.epochs or not probe.head_epochs or probe.dropout:
        wrong.append(
            "probe: trains the head alone on a frozen encoder; set probe.epochs to 0, "
            "probe.head_epochs to at least 1 and probe.dropout to false"
        )
    try:
        fusing.check(fuse_options(config))
    except ValueError as error:
        wrong.append(str(error))
    if fuse_options(config).needs_statistics:
        wrong.append(
            f"fuse.method: '{config.fuse.method}' needs statistics of every "
            "contributor, which a simulation does not collect; choose another"
        )
    if wrong:
        raise ValueError("\n".join(wrong))


def check_tasks(config: Config, tasks: Mapping[str, Task]) -> None:
    """Raises ValueError with every task that cannot take its part.

    Args:
      config: of the system, as `check_options` lets it pass.
      tasks: name -> task.
    """
    wrong = []
    if config.folds > len(tasks):
        wrong.append(f"folds: {config.folds} for {len(tasks)} tasks; take fewer")
    lost = sorted(set(config.tiny) - set(tasks))
    if lost:
        wrong.append(
            f"tiny: {', '.join(lost)} are no tasks; there are {', '.join(tasks)}"
        )
    called: dict[str, str] = {}
    for name in tasks:
        other = called.setdefault(contributor_name(name), name)
        if other != name:
            wrong.append(
                f"{name} and {other} are both called '{contributor_name(name)}' in a "
                "repository; rename one"
            )
    if not wrong:
        wrong += [
            f"{fold.name}: no task is left to contribute"
            for fold in folds_of(config, tuple(tasks), config.seed)
            if not fold.seen
        ]
    if wrong:
        raise ValueError("ColD fusion:\n  " + "\n  ".join(wrong))


def rounds_of(config: Config, name: str) -> list[int]:
    """The bases that an evaluation looks at, ascending.

    Args:
      config: of the system.
      name: 'evaluate_rounds', 'few_shot_rounds' or 'frozen_rounds'.
    """
    last = config.rounds
    default = {
        "evaluate_rounds": (last // 2,),
        "few_shot_rounds": (),
        "frozen_rounds": range(last + 1),
    }
    given = config[name] or default[name]
    return sorted({0, last, *(r if r >= 0 else last + 1 + r for r in given)})
