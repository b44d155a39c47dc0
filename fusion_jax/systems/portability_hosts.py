"""Hosts that a study makes: layers left out, and trained further on other tasks."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fusion_jax import trees
from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.config import Config
from fusion_jax.data.tokenise import load_tokenizer
from fusion_jax.processes import agreed, write_once
from fusion_jax.systems.identity import fit_identity
from fusion_jax.systems.multitask import train_together
from fusion_jax.systems.problem import Problem, make_problem
from fusion_jax.systems.stages import stage_config
from fusion_jax.systems.tasks import cut, read_tasks
from fusion_jax.systems.workdir import content_hash


def host_names(config: Config) -> tuple[str, ...]:
    """All hosts of a study, those that it makes last."""
    return (*config.hosts, *config.made)


def load_hosts(config: Config, folder: Path) -> dict[str, hf.Checkpoint]:
    """The hosts of a study, made where they have to be.

    Args:
      config: of the system: `hosts`, `made`, `make`, `make_shots`.
      folder: those that are made stand in `hosts/` below it, as model directories.

    Returns:
      name -> pretrained model.
    """
    found = {name: hf.load(source) for name, source in config.hosts.items()}
    for name, options in config.made.items():
        base = found[options["base"]]
        found[name] = _made(config, name, base, folder)
    return found


def with_layers(base: hf.Checkpoint, layers: Sequence[int]) -> hf.Checkpoint:
    """A model with some of its layers, in the order given.

    Args:
      base: the model.
      layers: numbers from 0; empty = all.

    Raises:
      ValueError: a layer that the model has not.
    """
    if not layers:
        return base
    lost = [n for n in layers if not 0 <= n < base.config.num_layers]
    if lost:
        raise ValueError(
            f"layers: {base.path} has {base.config.num_layers} layers, counted from 0, "
            f"and no {', '.join(map(str, lost))}"
        )
    own = {
        name: tree
        for name, tree in base.params["encoder"].items()
        if not name.startswith("layer_")
    }
    for place, number in enumerate(layers):
        own[f"layer_{place}"] = base.params["encoder"][f"layer_{number}"]
    params = {"encoder": own}
    return base._replace(
        config=replace(base.config, num_layers=len(layers)),
        params=params,
        kind=None,
        labels=(),
        sha256=hf.hash_params(params),
    )


def _made(
    config: Config, name: str, base: hf.Checkpoint, folder: Path
) -> hf.Checkpoint:
    options = config.made[name]
    encoder = with_layers(base, tuple(options["layers"]))
    fit = stage_config(config.make, config, config.seed)
    problems = _problems(config, tuple(options["tasks"]), base, encoder)
    identity = content_hash(
        encoder=encoder.sha256,
        tasks={task: fit_identity(p, encoder, fit) for task, p in problems.items()},
    )
    place = folder / "hosts" / f"{name}-{identity}"
    if not agreed(place.is_dir):
        params = encoder.params
        if problems:
            params, _ = train_together(problems, encoder, fit, folder / "hosts")
        whole = trees.unflatten(
            {**trees.flatten(encoder.params), **_encoder_leaves(params)}
        )
        write_once(
            str(place),
            lambda: _save(place, {"encoder": whole["encoder"]}, encoder),
        )
    return hf.load(place)


def _problems(
    config: Config, names: tuple[str, ...], base: hf.Checkpoint, encoder: hf.Checkpoint
) -> dict[str, Problem]:
    """What a host is trained on further; nothing without names."""
    tasks = read_tasks(config.data, names, config.seed) if names else {}
    return {
        task.name: make_problem(
            cut(task, shots=config.make_shots, max_test_rows=0, seed=config.seed),
            encoder,
            load_tokenizer(base.path),
            max_length=config.max_length,
            dtype=config.dtype,
            splits=("train", "dev"),
        )
        for task in tasks.values()
    }


def _encoder_leaves(params: trees.Params) -> dict[str, object]:
    return trees.flatten({"encoder": params["encoder"]})


def _save(place: Path, params: trees.Params, encoder: hf.Checkpoint) -> None:
    hf.save(place, params, encoder.config, kind=None, tokenizer_from=encoder.path)
