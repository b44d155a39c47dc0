"""Small repositories of a real model folder, and contributors that need no training."""

import hashlib

import jax
import numpy as np

from fusion_jax import trees
from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.collaboration.repository import init_repository, open_repository
from fusion_jax.collaboration.submission import submit
from tests.small_models import write_model

FIT = {"epochs": 1}


def make_repository(place, name="repository"):
    """A repository with base 0 and a cache beside it."""
    if not (place / "base").is_dir():
        write_model(place / "base")
    return init_repository(place / name, place / "base", cache=place / f"cache-{name}")


def at(place, name="repository", cache="cache"):
    """The same repository as another machine sees it."""
    return open_repository(place / name, cache=place / cache)


def stepped(params, seed, size=0.05):
    """Parameters a seeded step away."""

    def step(name, leaf):
        array = np.asarray(leaf)
        mark = hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8]
        noise = np.random.default_rng(int.from_bytes(mark, "little"))
        scale = size * (np.sqrt(np.mean(array**2)) + 1e-3)
        return (array + scale * noise.normal(size=array.shape)).astype(array.dtype)

    return trees.map_with_names(step, params)


def hand_in(
    repository, who, seed=0, *, base=None, size=0.05, head=None, change=lambda x: x
):
    """A contribution: the base and a step that depends on who and the seed alone.

    `change` is applied to the encoder after the step.
    """
    base = base or repository.current()
    params = hf.load(repository.base_folder(base.round)).params
    moved = {"encoder": change(stepped(params, f"{who}/{seed}", size)["encoder"])}
    if head is not None:
        moved["head"] = {"classifier": {"kernel": jax.numpy.full((16, 2), head)}}
    return submit(
        repository,
        base,
        moved,
        contributor=who,
        task="film",
        data_sha256=hashlib.sha256(who.encode()).hexdigest(),
        rows=12,
        fit=FIT,
        seed=seed,
        scores={"dev": 0.5},
    )


def leaves(repository, round_):
    """Tensors of a base by name, float64."""
    params = hf.load(repository.base_folder(round_)).params
    return {n: np.asarray(x, np.float64) for n, x in trees.flatten(params).items()}
