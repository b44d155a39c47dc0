"""The multi-task comparator: all tasks at once, then the target."""

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from fusion_jax.checkpoints.huggingface import Checkpoint
from fusion_jax.systems.experts import finetune_experts, head_key
from fusion_jax.systems.identity import fit_identity
from fusion_jax.systems.judge import Judge
from fusion_jax.systems.problem import Problem, starting_params, widened
from fusion_jax.systems.workdir import cached_params, content_hash
from fusion_jax.training.config import FitConfig
from fusion_jax.training.evaluate import TOKENS_PER_BATCH, DevJudge, DevScore
from fusion_jax.training.fit import fit
from fusion_jax.training.multitask import (
    MixedBatches,
    join_heads,
    multitask_model,
    part_heads,
)
from fusion_jax.types import Params

MULTITASK = "multitask"
"""Name of the model that was trained on all tasks at once."""


def finetune_multitask(
    problems: Mapping[str, Problem],
    target: Problem,
    encoder: Checkpoint,
    start: Params,
    config: FitConfig,
    target_config: FitConfig,
    folder: Path,
) -> Params:
    """All tasks at once, then the target: the multi-task comparator.

    Args:
      problems: task name -> problem, the target among them.
      target: the target.
      encoder: theta_0.
      start: theta_0 with the target's head.
      config: of the joint training.
      target_config: of the fine-tuning after it, the same as the experts'.
      folder: where finished models are kept.
    """
    joint, identity = train_together(problems, encoder, config, folder)
    tuned = finetune_experts(
        target,
        encoder,
        start,
        {MULTITASK: {"encoder": joint["encoder"]}},
        target_config,
        folder,
        lineage={MULTITASK: identity},
    )
    return tuned[MULTITASK]


def train_together(
    problems: Mapping[str, Problem],
    encoder: Checkpoint,
    config: FitConfig,
    folder: Path,
) -> tuple[Params, str]:
    """One encoder for all tasks, with a head for each.

    Args:
      problems: task name -> problem.
      encoder: theta_0.
      config: how to train; unless it selects the last epoch, the one whose mean score
        over the tasks' dev rows is best is taken.
      folder: where finished models are kept.

    Returns:
      ({'encoder': ..., 'heads': {task: head}}, hash of what it was made from).
    """
    # One order of the tasks, whoever asks.
    problems = dict(sorted(problems.items()))
    kinds = {name: problem.kind for name, problem in problems.items()}
    # Heads of one kind are padded to its largest label count, as their batches are.
    widths = {
        kind: max(p.task.num_labels for p in problems.values() if p.kind == kind)
        for kind in dict.fromkeys(kinds.values())
    }
    wide = {
        name: widened(problem, encoder, widths[problem.kind], config.dtype)
        for name, problem in problems.items()
    }
    chooses = config.select != "last"
    identity = content_hash(
        **({"selected": "mean of dev"} if chooses else {}),
        tasks={name: fit_identity(p, encoder, config) for name, p in problems.items()},
    )

    def train() -> Params:
        params = join_heads(
            {
                name: starting_params(
                    problem, encoder.params, encoder.params, head_key(name, config.seed)
                )
                for name, problem in wide.items()
            },
            kinds,
        )
        models = {problem.kind: problem.model for problem in wide.values()}
        members = {
            name: problem.train_batches(config) for name, problem in wide.items()
        }
        batches = MixedBatches(members, kinds, seed=config.seed)
        trained = fit(
            multitask_model(models),
            params,
            batches,
            _judge(problems, kinds) if chooses else None,
            config,
            kind="mixed",
            metrics=("accuracy",),
            workdir=folder / "fits" / f"{MULTITASK}-{identity}",
            name=MULTITASK,
        ).params
        heads = {
            name: _own_columns(head, problems[name])
            for name, head in part_heads(trained["head"], kinds).items()
        }
        return {"encoder": trained["encoder"], "heads": heads}

    file = folder / f"{MULTITASK}-{identity}-heads.safetensors"
    return cached_params(file, train)[0], identity


def _judge(problems: Mapping[str, Problem], kinds: Mapping[str, str]) -> DevJudge:
    """The mean over the tasks of their scores on dev."""
    judges = {
        name: Judge(problem, TOKENS_PER_BATCH) for name, problem in problems.items()
    }

    def judge(params: Params) -> DevScore:
        heads = part_heads(params["head"], kinds)
        found = {}
        for name, head in heads.items():
            own = _own_columns(head, problems[name])
            found[name] = judges[name].scores(
                {"encoder": params["encoder"], "head": own}, "dev"
            )
        return DevScore(
            {name: scores.mean for name, scores in found.items()},
            float(np.mean([scores.mean for scores in found.values()])),
            float(np.mean([scores.loss for scores in found.values()])),
        )

    return judge


def _own_columns(head: Params, problem: Problem) -> Params:
    """A head without the columns that only wider tasks of its kind have."""
    key = jax.random.key(0)
    shapes = jax.eval_shape(problem.model.init, key)["head"]
    return jax.tree.map(
        lambda x, own: x[tuple(slice(size) for size in own.shape)], head, shapes
    )
