"""What the steps of a task selection share."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.config import Config
from fusion_jax.data import Task
from fusion_jax.data.tokenise import load_tokenizer
from fusion_jax.systems.problem import Problem, make_problem
from fusion_jax.systems.selection_tasks import SelectionTasks, selection_tasks


@dataclass
class Setting:
    """Encoder, tasks made ready, and where what is computed is kept.

    Attributes:
      config: of the system.
      encoder: theta_0.
      tokenizer: of the encoder.
      folder: of the run.
      read: the tasks as they were read.
      problems: task -> problem; all have one model.
    """

    config: Config
    encoder: hf.Checkpoint
    tokenizer: Any
    folder: Path
    read: SelectionTasks
    problems: dict[str, Problem] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Of all tasks that take part, in the order of tables."""
        return tuple(self.problems)


def prepare(config: Config, folder: Path) -> Setting:
    """Reads the tasks; `make_ready` tokenises those that take part.

    Args:
      config: of the system.
      folder: of the run.

    Raises:
      ValueError, TaskError, FileNotFoundError: tasks that cannot take part.
    """
    encoder = hf.load(config.encoder)
    tokenizer = load_tokenizer(encoder.path)
    return Setting(config, encoder, tokenizer, folder, selection_tasks(config))


def make_ready(setting: Setting, names: Sequence[str]) -> None:
    """Tokenises tasks, which makes them those of the setting."""
    for name in names:
        setting.problems[name] = ready(setting, setting.read.tasks[name])


def ready(setting: Setting, task: Task) -> Problem:
    """A task made ready, with the one model of the setting."""
    problem = make_problem(
        task,
        setting.encoder,
        setting.tokenizer,
        max_length=setting.config.max_length,
        dtype=setting.config.dtype,
    )
    # One model for all, so that what is compiled for one task serves all.
    model = next(iter(setting.problems.values()), problem).model
    return replace(problem, model=model)
