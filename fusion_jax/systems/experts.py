"""DFWE's experts: trained on sources, fine-tuned on the target, each once."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fusion_jax import trees
from fusion_jax.checkpoints.huggingface import Checkpoint, hash_params
from fusion_jax.processes import agreed
from fusion_jax.systems.identity import fit_identity
from fusion_jax.systems.problem import Problem, same_head, starting_params
from fusion_jax.systems.workdir import cached_params, content_hash
from fusion_jax.training.config import FitConfig
from fusion_jax.training.fit import fit, fit_stack
from fusion_jax.types import Key, Params

DIRECT = "direct"
"""Name of the expert that saw no source: the direct fine-tune."""


def head_key(name: str, seed: int) -> Key:
    """The key that draws a task's head: one head for each (task, seed)."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def train_sources(
    problems: Mapping[str, Problem],
    encoder: Checkpoint,
    config: FitConfig,
    folder: Path,
) -> dict[str, Params]:
    """Stage 1: phi_s = Train(theta_0; D_s), the best epoch by s's own dev.

    A source expert does not depend on the target: it is trained once and found again
    by its content for every target.

    Args:
      problems: source name -> problem.
      encoder: theta_0.
      config: how to train; its seed also draws the heads.
      folder: where finished experts are kept.

    Returns:
      source name -> parameters.
    """
    experts = {}
    for name, problem in problems.items():
        start = starting_params(
            problem, encoder.params, encoder.params, head_key(name, config.seed)
        )
        experts[name] = fitted_once(name, problem, encoder, start, config, folder)
    return experts


def target_start(
    problem: Problem, encoder: Checkpoint, config: FitConfig, folder: Path
) -> Params:
    """theta_0 with the target's head, the head that all experts start from.

    Experts whose heads began at different random numbers are not linearly connected.
    With `config.head_epochs` the head is first trained on the frozen encoder (linear
    probe), once, and then given to all.
    """
    start = starting_params(
        problem,
        encoder.params,
        encoder.params,
        head_key(problem.task.name, config.seed),
    )
    if not config.head_epochs:
        return start
    probe = replace(config, epochs=0)
    name = f"{problem.task.name}-head"
    return fitted_once(name, problem, encoder, start, probe, folder)


def fitted_once(
    name: str,
    problem: Problem,
    encoder: Checkpoint,
    start: Params,
    config: FitConfig,
    folder: Path,
    **more: Any,
) -> Params:
    """Fits a problem from `start`, or finds the result of such a fit by its content.

    Args:
      name: of the fit, and how its file's name begins.
      problem: with train and dev.
      encoder: theta_0.
      start: where the fit begins.
      config: how to train.
      folder: where finished fits are kept.
      more: plain values that say where `start` came from, beyond theta_0 and a head
        drawn from the name and the seed.
    """
    identity = fit_identity(problem, encoder, config, **more)

    def train() -> Params:
        return fit(
            problem.model,
            start,
            problem.encoded["train"],
            problem.encoded["dev"],
            config,
            kind=problem.kind,
            metrics=problem.metrics,
            workdir=folder / "fits" / f"{name}-{identity}",
            name=name,
        ).params

    return cached_params(folder / f"{name}-{identity}.safetensors", train)[0]


def finetune_experts(
    problem: Problem,
    encoder: Checkpoint,
    start: Params,
    sources: Mapping[str, Params],
    config: FitConfig,
    folder: Path,
    *,
    lineage: Mapping[str, str],
) -> dict[str, Params]:
    """Stages 2 and 3: theta_s = Train(phi_s; D_t) and theta_d = Train(theta_0; D_t).

    Args:
      problem: the target.
      encoder: theta_0.
      start: theta_0 with the target's head.
      sources: source name -> parameters of stage 1.
      config: how to train; all experts see the same batches in the same order.
      folder: where finished experts are kept.
      lineage: source name -> hash of how it was made.

    Returns:
      'direct' and one entry a source -> parameters.

    Raises:
      ValueError: a leaf that `config.frozen` names differs between the starts.
    """
    config = replace(config, head_epochs=0)
    starts = {DIRECT: start}
    for name, params in sources.items():
        encoder_only = {"encoder": params["encoder"]}
        begun = starting_params(
            problem,
            encoder_only,
            encoder.params,
            head_key(problem.task.name, config.seed),
        )
        starts[name] = same_head(begun, start)
    files = {
        name: folder
        / (
            f"{problem.task.name}-from-{name}-"
            + fit_identity(
                problem,
                encoder,
                config,
                source=lineage.get(name, ""),
                head=_head_hash(start),
            )
            + ".safetensors"
        )
        for name in starts
    }
    missing = [name for name in starts if not agreed(files[name].is_file)]
    tuned: dict[str, Params] = {}
    if missing:
        held = [trees.partition(starts[name], config.frozen) for name in missing]
        shared = held[0][0]
        _check_frozen(missing, [frozen for frozen, _ in held])
        stack = trees.stack([rest for _, rest in held], missing)
        batches = problem.train_batches(config)
        identity = content_hash(files=[files[name].name for name in missing])
        result = fit_stack(
            problem.model,
            stack,
            shared,
            batches,
            problem.encoded["dev"],
            config,
            kind=problem.kind,
            metrics=problem.metrics,
            names=missing,
            workdir=folder / "fits" / f"{problem.task.name}-{identity}",
            name=problem.task.name,
        )
        for name, params in zip(missing, trees.unstack(result.params), strict=True):
            tuned[name] = trees.combine(shared, params)
    return {
        name: cached_params(file, lambda name=name: tuned[name])[0]
        for name, file in files.items()
    }


def _check_frozen(names: Sequence[str], frozen: Sequence[Params]) -> None:
    """Raises unless what the target's stage freezes is the same in every start.

    It is held once for all: what a source trained of it would be lost.
    """
    common = trees.flatten(frozen[0])
    differing = [
        f"{leaf} ({name})"
        for name, tree in zip(names[1:], frozen[1:], strict=True)
        for leaf, value in trees.flatten(tree).items()
        if not np.array_equal(value, common[leaf])
    ]
    if differing:
        more = f" and {len(differing) - 6} more" if len(differing) > 6 else ""
        raise ValueError(
            f"frozen on the target, but trained before: {', '.join(differing[:6])}"
            f"{more}; give source.frozen and multitask.frozen at least the leaves of "
            "target.frozen"
        )


def source_lineage(
    problems: Mapping[str, Problem], encoder: Checkpoint, config: FitConfig
) -> dict[str, str]:
    """Hash of everything that each source expert is made from, by name."""
    return {
        name: fit_identity(problem, encoder, config)
        for name, problem in problems.items()
    }


def _head_hash(params: Params) -> str:
    return hash_params({"head": params["head"]})[:16]
