"""What the steps of a task selection share."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.config import Config
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
    """Reads and tokenises the tasks.

    Args:
      config: of the system.
      folder: of the run.

    Raises:
      ValueError, TaskError, FileNotFoundError: tasks that cannot take part.
    """
    encoder = hf.load(config.encoder)
    tokenizer = load_tokenizer(encoder.path)
    setting = Setting(config, encoder, tokenizer, folder, selection_tasks(config))
    for name, task in setting.read.tasks.items():
        problem = make_problem(
            task,
            encoder,
            tokenizer,
            max_length=config.max_length,
            dtype=config.dtype,
        )
        # One model for all, so that what is compiled for one task serves all.
        model = next(iter(setting.problems.values()), problem).model
        setting.problems[name] = replace(problem, model=model)
    return setting
