"""What all folds of one seed share: the encoder, the tasks made ready, their judges."""

from dataclasses import dataclass, field
from pathlib import Path

from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.config import Config
from fusion_jax.data import Task
from fusion_jax.data.tokenise import load_tokenizer
from fusion_jax.systems.cold_check import check_tasks
from fusion_jax.systems.cold_tasks import cold_tasks, few_rows
from fusion_jax.systems.judge import Judge
from fusion_jax.systems.problem import Problem, make_problem, widened


@dataclass
class Setting:
    """What all folds of one seed share.

    Attributes:
      config: of the system.
      seed: of the run.
      encoder: theta_0.
      folder: of the whole run; evaluations are found there again by their content.
      problems: task -> problem, with a head as wide as the widest of its kind.
      few: task -> the problem with few training rows and the same test rows.
      rows: task -> training rows before any cut.
      tiny: tasks that the second average leaves out.
      judges: task -> scorer.
    """

    config: Config
    seed: int
    encoder: hf.Checkpoint
    folder: Path
    problems: dict[str, Problem] = field(default_factory=dict)
    few: dict[str, Problem] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    tiny: frozenset[str] = frozenset()
    judges: dict[str, Judge] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """All tasks."""
        return tuple(self.problems)


def prepare(config: Config, seed: int, encoder: hf.Checkpoint, folder: Path) -> Setting:
    """Reads the tasks of a seed and makes them ready.

    Heads of one kind are as wide as its widest task needs, so that what is compiled
    for one task serves all.

    Raises:
      ValueError, TaskError: tasks that cannot take their part, each named.
    """
    found = cold_tasks(config, seed)
    check_tasks(config, found.tasks)
    tokenizer = load_tokenizer(encoder.path)
    widths = {
        kind: max(t.num_labels for t in found.tasks.values() if t.kind == kind)
        for kind in {task.kind for task in found.tasks.values()}
    }

    def problem_of(task: Task, *splits: str) -> Problem:
        problem = make_problem(
            task,
            encoder,
            tokenizer,
            max_length=dict(config.task_lengths).get(task.name, config.max_length),
            dtype=config.dtype,
            splits=splits,
        )
        return widened(problem, encoder, widths[task.kind], config.dtype)

    setting = Setting(config, seed, encoder, folder, rows=found.rows, tiny=found.tiny)
    for name, task in found.tasks.items():
        problem = problem_of(task, "train", "dev", "test")
        setting.problems[name] = problem
        setting.judges[name] = Judge(problem, config.tokens_per_batch)
        setting.few[name] = problem_of(
            few_rows(task, config.few_shot, seed), "train", "dev"
        )
    return setting
