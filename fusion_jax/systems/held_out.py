"""A probe of contributions: what a linear head learns from their frozen encoders."""

import os
from pathlib import Path

from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.collaboration.repository import Repository
from fusion_jax.collaboration.screening import Probe
from fusion_jax.data import load_task, split_off_dev
from fusion_jax.data.tokenise import load_tokenizer
from fusion_jax.systems.experts import head_key
from fusion_jax.systems.problem import make_problem, starting_params
from fusion_jax.systems.saved_model import score_splits
from fusion_jax.training.config import FitConfig
from fusion_jax.training.probe import fit_head

RECIPE = FitConfig(
    epochs=0, head_epochs=10, head_learning_rate=1e-2, dropout=False, select="metric"
)
"""Of the head; one for all, so that scores can be held against each other."""


def held_out_probe(
    repository: Repository,
    data: str | os.PathLike[str],
    *,
    max_length: int = 128,
    fit: FitConfig = RECIPE,
) -> Probe:
    """A screen's last check: a head is trained on a frozen body, and scored on dev.

    Args:
      repository: whose contributions are probed.
      data: a task's folder that no contributor has.
      max_length: tokens of an input.
      fit: of the head.

    Returns:
      `(file of weights) -> mean metric on the dev rows`, in [0, 1].

    Raises:
      TaskError: no such task, or bad rows.
    """
    task = split_off_dev(load_task(data, use_partial=True), fit.seed)
    encoder = hf.load(repository.base_folder(0))
    problem = make_problem(
        task,
        encoder,
        load_tokenizer(encoder.path),
        max_length=max_length,
        splits=("train", "dev"),
    )
    key = head_key(task.name, fit.seed)

    def probe(file: Path) -> float:
        with repository.scratch() as place:
            repository.write_model(place / "model", file)
            body = hf.load(place / "model").params
        start = starting_params(problem, body, encoder.params, key)
        trained = fit_head(
            problem.model,
            start,
            problem.encoded["train"],
            problem.encoded["dev"],
            fit,
            kind=problem.kind,
            metrics=problem.metrics,
            name=f"probe on {task.name}",
            progress=False,
        )
        return score_splits(problem, trained.params, ["dev"])["dev"].mean

    return probe
