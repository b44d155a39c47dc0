"""The owners' models: given, or trained by each on its own rows; and all together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.config import Config
from fusion_jax.data import Task
from fusion_jax.data.tokenise import load_tokenizer
from fusion_jax.systems.dataless_members import Member
from fusion_jax.systems.experts import fitted_once, head_key
from fusion_jax.systems.given import given_experts
from fusion_jax.systems.multitask import train_together
from fusion_jax.systems.problem import Problem, make_problem, starting_params
from fusion_jax.systems.stages import stage_config
from fusion_jax.types import Params

SHARED_HEAD = "shared"
"""What the common head of all owners is drawn from, beside the seed."""


def train_members(
    config: Config,
    problems: Mapping[str, Problem],
    encoder: hf.Checkpoint,
    seed: int,
    folder: Path,
) -> dict[str, Params]:
    """Every owner's model, each trained once and found again by its content.

    Args:
      config: of the system: `head_init`, `experts`, `fit`.
      problems: task -> problem.
      encoder: theta_0.
      seed: of heads and the order of rows.
      folder: where finished models are kept.

    Raises:
      ValueError: `experts` are not one for each task.
    """
    if config.experts:
        return _given(config, problems)
    fit = stage_config(config.fit, config, seed)
    models = {}
    for name, problem in problems.items():
        drawn = SHARED_HEAD if config.head_init == "same" else name
        start = starting_params(
            problem, encoder.params, encoder.params, head_key(drawn, seed)
        )
        models[name] = fitted_once(
            name, problem, encoder, start, fit, folder, head=drawn
        )
    return models


def joint_model(
    config: Config,
    problems: Mapping[str, Problem],
    encoder: hf.Checkpoint,
    seed: int,
    folder: Path,
) -> Callable[[Member | None], Sequence[Params]]:
    """Multi-task training on all rows: what data that may be shared would give.

    One head where labels are shared, one for each task otherwise; of the epoch that is
    best on all dev rows, or has the best mean over the tasks'.

    Returns:
      `(member or None for an unseen domain) -> [model]`.
    """
    fit = stage_config(config.multitask, config, seed)
    if config.labels == "private":
        joint, _ = train_together(problems, encoder, fit, folder)

        def of(member: Member | None) -> list[Params]:
            assert member is not None
            return [{"encoder": joint["encoder"], "head": joint["heads"][member.name]}]

        return of
    whole = _pooled(config, problems, encoder)
    start = starting_params(
        whole, encoder.params, encoder.params, head_key(SHARED_HEAD, seed)
    )
    model = fitted_once(
        whole.task.name, whole, encoder, start, fit, folder, head=SHARED_HEAD
    )
    return lambda member: [model]


def _given(config: Config, problems: Mapping[str, Problem]) -> dict[str, Params]:
    if len(config.experts) != len(problems):
        raise ValueError(
            f"experts: {len(config.experts)} folders for {len(problems)} tasks "
            f"({', '.join(problems)}); give one for each, in this order"
        )
    models = {}
    for source, (name, problem) in zip(config.experts, problems.items(), strict=True):
        found = given_experts([source], config.encoder, problem)
        models[name] = next(iter(found.values()))
    return models


def _pooled(
    config: Config, problems: Mapping[str, Problem], encoder: hf.Checkpoint
) -> Problem:
    """All rows as one task; dev chooses the epoch as it does for each owner."""
    tasks = [problem.task for problem in problems.values()]
    splits = {
        split: tuple(row for task in tasks for row in task.splits[split])
        for split in ("train", "dev")
    }
    task: Task = replace(tasks[0], name="multitask", splits=splits)
    return make_problem(
        task,
        encoder,
        load_tokenizer(encoder.path),
        max_length=max(problem.max_length for problem in problems.values()),
        dtype=config.dtype,
    )
