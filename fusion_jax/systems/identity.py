"""What a fit is made of, as a name: equal fits are found again, others never met."""

import dataclasses
from typing import Any

from fusion_jax.checkpoints.huggingface import Checkpoint
from fusion_jax.data.encoded import hash_encoded
from fusion_jax.systems.problem import Problem
from fusion_jax.systems.workdir import content_hash
from fusion_jax.training.config import FitConfig


def fit_identity(
    problem: Problem, encoder: Checkpoint, config: FitConfig, **more: Any
) -> str:
    """Hash of everything that decides what a fit of a problem returns.

    Training and dev rows as token ids, metrics, encoder, the options that matter and
    those of the module that is trained; not the test rows, which training never sees.

    Args:
      problem: with the splits train and dev.
      encoder: theta_0.
      config: how to train.
      more: plain values of what else it began from.
    """
    if problem.beside is not None:
        more["peft"] = problem.beside.config.to_json()
    return content_hash(
        train=hash_encoded(problem.encoded["train"]),
        dev=hash_encoded(problem.encoded["dev"]),
        metrics=problem.metrics,
        encoder=encoder.sha256,
        architecture=dataclasses.asdict(encoder.config),
        fit=config.decisive(),
        max_length=problem.max_length,
        **more,
    )
