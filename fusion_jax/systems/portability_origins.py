"""Origin modules: trained once each on the origin's host and data, or given."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fusion_jax import trees
from fusion_jax.checkpoints.module_file import load_module, save_module
from fusion_jax.data.batches import bucket_lengths
from fusion_jax.evaluation.bootstrap import interval
from fusion_jax.peft.attach import attach
from fusion_jax.peft.module import Module, init_module, with_module
from fusion_jax.processes import agreed, write_once
from fusion_jax.systems.experts import head_key
from fusion_jax.systems.identity import fit_identity
from fusion_jax.systems.judge import Judge
from fusion_jax.systems.portability_given import given_module
from fusion_jax.systems.portability_grid import Origin
from fusion_jax.systems.portability_setting import DRAWN, Setting, peft_config
from fusion_jax.systems.stages import stage_config
from fusion_jax.training.config import FitConfig
from fusion_jax.training.fit import fit_stack
from fusion_jax.types import Key, Model, Params


class Trained(NamedTuple):
    """An origin's module with its head, and what it was made of.

    Attributes:
      module: its params hold the head too.
      identity: hash of all that decides it.
    """

    module: Module
    identity: str


def origin_modules(
    setting: Setting, origins: Sequence[Origin]
) -> dict[Origin, Trained]:
    """Every origin's module, each trained once and found again by its content.

    The seeds of one technique, host and task are a stack over one frozen host.

    Args:
      setting: of the study.
      origins: which.
    """
    given = dict(text.partition("=")[::2] for text in setting.config.modules)
    groups: dict[tuple[str, str, str], list[int]] = {}
    for origin in origins:
        groups.setdefault(origin[:3], []).append(origin.seed)
    found: dict[Origin, Trained] = {}
    for (technique, host, task), seeds in groups.items():
        to_train = []
        for seed in seeds:
            origin = Origin(technique, host, task, seed)
            if origin.name in given:
                found[origin] = Trained(
                    *given_module(setting, origin, given[origin.name])
                )
            else:
                to_train.append(origin)
        found |= _trained(setting, to_train)
    return found


def module_key(seed: int, *names: str) -> Key:
    """The key of a draw that a seed and names decide."""
    return head_key("/".join(names), seed)


def origin_scores(
    setting: Setting, trained: Mapping[Origin, Trained]
) -> list[dict[str, Any]]:
    """What each module does at home: the record of results.json."""
    records = []
    for origin, (module, _) in trained.items():
        problem = setting.problem(origin.host, origin.task, receiver=False)
        own = replace(problem, model=attach(problem.model, module.config))
        params = with_module(setting.whole(origin.host, origin.task, 0), module.params)
        judge = Judge(own, setting.config.tokens_per_batch)
        test = judge.scores(params, "test")
        records.append(
            {
                **origin._asdict(),
                "dev": judge.scores(params, "dev").mean,
                "test": test.mean,
                "test_interval": list(interval(test)),
            }
        )
    return records


def without(host: Params, leaves: Params) -> Params:
    """A host without the leaves that a module brings under its names."""
    brought = trees.flatten(leaves).keys()
    return trees.unflatten(
        {name: x for name, x in trees.flatten(host).items() if name not in brought}
    )


def _trained(setting: Setting, origins: Sequence[Origin]) -> dict[Origin, Trained]:
    if not origins:
        return {}
    technique, host, task, _ = origins[0]
    config, peft = setting.config, peft_config(setting.config, technique)
    problem = setting.problem(host, task, receiver=False)
    model = attach(problem.model, peft)
    rate = setting.learning_rate(technique)
    fits = {
        origin: replace(
            stage_config(config.fit, config, origin.seed), learning_rate=rate
        )
        for origin in origins
    }
    identities = {
        origin: fit_identity(
            problem,
            setting.hosts[host],
            fit,
            peft=peft.to_json(),
            task=task,
            drawn=DRAWN,
        )
        for origin, fit in fits.items()
    }
    folders = {
        origin: setting.folder
        / "modules"
        / f"{origin.name.replace(':', '-')}-{identities[origin]}"
        for origin in origins
    }
    missing = [o for o in origins if not agreed(folders[o].is_dir)]
    if missing:
        record = dict(setting.host(host).record)
        for origin, params in _fit(setting, missing, model, fits).items():
            module = Module(peft, params, record)
            _write_once(folders[origin], module)
    return {
        origin: Trained(load_module(folders[origin]), identities[origin])
        for origin in origins
    }


def _write_once(folder: Path, module: Module) -> None:
    def write() -> None:
        save_module(folder, module)

    write_once(str(folder), write)


def _fit(
    setting: Setting,
    origins: Sequence[Origin],
    model: Model,
    fits: Mapping[Origin, FitConfig],
) -> dict[Origin, Params]:
    """Trains modules and heads of one host and task, a stack of seeds."""
    technique, host, task, _ = origins[0]
    problem = setting.problem(host, task, receiver=False)
    peft = peft_config(setting.config, technique)
    starts = []
    for origin in origins:
        whole = setting.whole(host, task, origin.seed)
        key = module_key(origin.seed, technique, host, task)
        starts.append(init_module(peft, whole, key).params)
    names = [f"seed {origin.seed}" for origin in origins]
    shared = without(setting.whole(host, task, 0), starts[0])
    result = fit_stack(
        model,
        trees.stack(starts, names),
        shared,
        [problem.train_batches(fits[origin]) for origin in origins],
        problem.encoded["dev"],
        replace(
            fits[origins[0]],
            buckets=fits[origins[0]].buckets or bucket_lengths(problem.max_length),
        ),
        kind=problem.kind,
        names=names,
        metrics=problem.metrics,
        name=f"{technique} {host} {task}",
        together=setting.config.together or None,
    )
    return dict(
        zip(
            origins,
            jax.tree.map(np.asarray, trees.unstack(result.params)),
            strict=True,
        )
    )
