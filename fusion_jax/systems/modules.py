"""A module trained in the place of a whole encoder, and what is kept of it."""

import dataclasses
import re
from typing import Any, NamedTuple

import jax

from fusion_jax import trees
from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.checkpoints.module_file import about_host
from fusion_jax.config import Config
from fusion_jax.peft import (
    KINDS,
    Module,
    PeftConfig,
    attach,
    flat_prefix,
    host_leaves,
    init_module,
    merge_into,
    module_leaves,
    portable,
    residual_host,
    with_module,
)
from fusion_jax.systems.problem import Problem
from fusion_jax.training.config import FitConfig
from fusion_jax.types import Key, Model, Params


class Plan(NamedTuple):
    """A module about to be trained.

    Attributes:
      start: the module at its start.
      model: the host's model with it.
      params: host and module in one tree, as the fit begins.
      host: the host with a fresh head, which the module leaves as it is.
      fit: the fit's options, with everything but the module frozen.
    """

    start: Module
    model: Model
    params: Params
    host: Params
    fit: FitConfig


def peft_config(config: Config) -> PeftConfig | None:
    """The module that a run's config asks for; None: the whole encoder is trained.

    Raises:
      ValueError: options that make no sense; all of them are listed.
    """
    if not config.peft.kind:
        return None
    asked = PeftConfig.from_json(config.peft.to_dict())
    if asked.dropout and not config.fit.dropout:
        raise ValueError(
            f"peft.dropout = {asked.dropout} is read with dropout alone: set "
            "fit.dropout=True too"
        )
    return asked


def plan_module(
    asked: PeftConfig,
    problem: Problem,
    encoder: hf.Checkpoint,
    host: Params,
    fit: FitConfig,
    key: Key,
    name: str = "",
) -> Plan:
    """Puts a fresh module beside an encoder with a head.

    What the encoder has not (the head, perhaps the pooler) is trained with the module
    and belongs to it.

    Args:
      asked: of `peft_config`.
      problem: what is to be trained.
      encoder: the host.
      host: `starting_params`.
      fit: the options; what they freeze is the module's to say.
      key: draws the module.
      name: of the host.
    """
    known = trees.flatten(encoder.params)
    fresh = tuple(
        re.escape(leaf)
        for leaf in trees.flatten(host)
        if leaf.startswith("encoder/") and leaf not in known
    )
    config = dataclasses.replace(
        asked, replaces=tuple(dict.fromkeys((*asked.replaces, r"head/.*", *fresh)))
    )
    start = init_module(config, host, key, about=about_host(encoder, name))
    below = residual_host(host, start) if config.init == "pissa" else host
    return Plan(
        start=start,
        model=attach(problem.model, config),
        params=with_module(below, start.params),
        host=host,
        fit=dataclasses.replace(fit, frozen=(host_leaves(config),)),
    )


def kept_module(plan: Plan, trained: Params) -> Module:
    """The trained module in the form that is kept, for the host as it was.

    Args:
      plan: how it began.
      trained: the tree that the fit gave back.

    Returns:
      The module: of PiSSA plain LoRA of twice the rank, of a prefix with networks the
      rows that they give.
    """
    config = plan.start.config
    own, _ = trees.partition(trained, module_leaves(config))
    module = plan.start._replace(params=own)
    if config.init == "pissa":
        return portable(module, plan.start)
    if config.kind == "prefix":
        return flat_prefix(module)
    return module


def scored(plan: Plan, problem: Problem, module: Module) -> tuple[Problem, Params]:
    """What is scored of a module: the merged model, where it can be merged.

    Returns:
      (the problem with the model to be scored, its parameters).
    """
    if KINDS[module.config.kind].merge is not None:
        return problem, merge_into(plan.host, module)
    model = attach(problem.model, module.config)
    return (
        dataclasses.replace(problem, model=model),
        with_module(plan.host, module.params),
    )


def described(module: Module, host: Params) -> dict[str, Any]:
    """The entry 'module' of results.json.

    Args:
      module: as it is kept.
      host: with its head.
    """
    kind = KINDS[module.config.kind]
    own = trees.num_params(module.params)
    return {
        "kind": module.config.kind,
        "config": module.config.to_json(),
        "host": dict(module.host),
        "parameters": own,
        "share": own / trees.num_params(host),
        "merged": kind.merge is not None,
        "why_not_merged": kind.why or None,
    }


def module_key(seed: int) -> Key:
    """Draws a run's module, by a stream of its own."""
    return jax.random.fold_in(jax.random.key(seed), 1)
