"""DFWE over modules: what is trained, searched and left where modules are the experts.

The host is one for all: its weights are neither trained nor interpolated, and a
population of candidates reads them once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from fusion_jax import trees
from fusion_jax.checkpoints.huggingface import Checkpoint
from fusion_jax.checkpoints.module_file import about_host, host_hash, load_module
from fusion_jax.config import Config
from fusion_jax.peft import (
    KINDS,
    Module,
    PeftConfig,
    attach,
    host_leaves,
    merge_into,
    module_leaves,
)
from fusion_jax.peft.gates import ungated
from fusion_jax.search.modules import RULES, module_of, module_points
from fusion_jax.search.points import Points
from fusion_jax.systems.given import names_of
from fusion_jax.systems.problem import Problem
from fusion_jax.training.config import FitConfig
from fusion_jax.types import Params


@dataclass(frozen=True)
class Searched:
    """Modules as the points of a search.

    Attributes:
      config: of the module that a candidate is.
      problem: with the model of host and candidate.
      points: what is interpolated.
      host: the encoder with the target's head, without a module.
      about: what is known of the host.
    """

    config: PeftConfig
    problem: Problem
    points: Points
    host: Params
    about: Mapping[str, Any]

    def module(self, coefficients: np.ndarray) -> Module:
        """The module of one candidate, [G, K]."""
        weights = jnp.asarray(coefficients, jnp.float32)
        module = module_of(self.config, self.points, weights, self.about)
        return ungated(module) if self.config.kind == "lora" else module

    def merged(self, coefficients: np.ndarray) -> Params:
        """The whole model of one candidate, without a module beside it."""
        return merge_into(self.host, self.module(coefficients))


def module_config(config: Config, encoder: Checkpoint) -> PeftConfig | None:
    """The module that a run's config asks for; None: whole models.

    What the encoder has not (the head, perhaps the pooler) belongs to the module.

    Raises:
      ValueError: options that make no sense, or a kind that cannot be merged into the
        model that a run leaves.
    """
    if not config.peft.kind:
        return None
    asked = PeftConfig.from_json(config.peft.to_dict())
    kind = KINDS[asked.kind]
    if kind.merge is None or kind.across or asked.init == "pissa":
        able = [
            name for name, k in KINDS.items() if k.merge is not None and not k.across
        ]
        what = "init pissa" if asked.init == "pissa" else f"kind {asked.kind}"
        raise ValueError(
            f"peft: modules of {what} do not become part of one frozen encoder, and a "
            f"run leaves a merged model; choose a kind of {', '.join(able)}, not pissa"
        )
    if config.module_rule not in ("auto", *RULES):
        raise ValueError(
            f"module_rule: '{config.module_rule}' is not one of auto, "
            f"{', '.join(RULES)}"
        )
    fresh = () if "pooler" in encoder.params["encoder"] else (r"encoder/pooler/.*",)
    replaces = dict.fromkeys((*asked.replaces, r"head/.*", *fresh))
    return replace(asked, replaces=tuple(replaces))


def frozen_host(options: FitConfig, config: PeftConfig | None) -> FitConfig:
    """The options of a fit; with a module all that is the host's is frozen."""
    if config is None:
        return options
    return replace(options, frozen=(host_leaves(config),))


def modules_of(
    models: Mapping[str, Params], config: PeftConfig, encoder: Checkpoint, name: str
) -> dict[str, Module]:
    """The modules of fits beside one encoder.

    Args:
      models: name -> host and module in one tree.
      config: of all modules.
      encoder: the host.
      name: of the host.
    """
    about = about_host(encoder, name)
    return {
        name: Module(config, trees.partition(tree, module_leaves(config))[0], about)
        for name, tree in models.items()
    }


def given_modules(
    sources: Sequence[str], start: Params, config: PeftConfig, encoder: Checkpoint
) -> dict[str, Module]:
    """Reads modules that exist and holds each against the host.

    Args:
      sources: folders of modules, each with a head for the target.
      start: the encoder with the target's head and a module.
      config: of that module.
      encoder: the host; `start` may have a pooler that it lacks.

    Raises:
      CheckpointError, FileNotFoundError: of `module_file.load_module`.
      ValueError: a module without a head, or two of one name.
    """
    host, found = _without_module(start, config), host_hash(encoder.params)
    modules = {
        name: load_module(source, host=host, made_for=found)
        for name, source in zip(names_of(sources), sources, strict=True)
    }
    headless = [name for name, m in modules.items() if "head" not in m.params]
    if headless:
        raise ValueError(
            f"experts: {', '.join(headless)} have no head; a search needs modules that "
            "were trained on the target's labels, with their head"
        )
    return modules


def searched_modules(
    config: Config,
    problem: Problem,
    modules: Mapping[str, Module],
    start: Params,
    groups: Sequence[tuple[str, int]],
) -> Searched:
    """The points of a search over modules.

    Args:
      config: of the system.
      problem: the target.
      modules: name -> module.
      start: the encoder with the target's head, perhaps with a module.
      groups: as in `search.modules.module_points`.

    Raises:
      ValueError: as `search.modules.module_points`.
    """
    rule = config.module_rule
    if rule == "auto":
        exact = all(
            m.config.kind == "lora" and not m.config.use_dora for m in modules.values()
        )
        rule = "exact" if exact else "leaves"
    beside = problem.beside
    model, host = problem.model, start
    if beside is not None:
        model = beside.host
        host = _without_module(start, beside.config)
    own, points = module_points(host, modules, rule=rule, groups=groups)
    judged = replace(problem, model=attach(model, own), beside=None)
    about = next(iter(modules.values())).host
    return Searched(own, judged, points, host, about)


def _without_module(start: Params, config: PeftConfig) -> Params:
    return trees.partition(start, KINDS[config.kind].owns)[1]
