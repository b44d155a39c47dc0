"""One part of a round of ColD Fusion, timed, in a process of its own.

    python scripts/bench/cold_fusion_jobs.py JOB

JOB is JSON: part, a name of `PARTS`, and what its function takes. Prints one line of
JSON at its end. `contributor` takes the steps of `systems.contribution.contribute` one
at a time, so that each is timed.
"""

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from counting_store import CountingStore

from fusion_jax import trees
from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.collaboration.fusing import FuseOptions, Member, fuse
from fusion_jax.collaboration.repository import Repository, init_repository
from fusion_jax.collaboration.rounds import fuse_round, waiting_for
from fusion_jax.collaboration.stores import open_store
from fusion_jax.collaboration.submission import submit
from fusion_jax.types import Params

FUSE = ("open", "clip", "merge", "fuse", "hash")
"""The phases of a fuse in a base's manifest."""


def main() -> None:
    """Runs one part."""
    job = json.loads(sys.argv[1])
    print(json.dumps(PARTS[job.pop("part")](**job)))


class Clock:
    """Seconds since the last look."""

    def __init__(self) -> None:
        """Begins now."""
        self._last = time.perf_counter()

    def look(self) -> float:
        """Seconds since the last look, or since the beginning."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds


def begin(url: str, encoder: str, cache: str) -> dict[str, Any]:
    """Makes the repository."""
    base = init_repository(url, encoder, cache=cache).base(0)
    return {"bytes": base.weights.bytes}


def contributor(
    url: str,
    cache: str,
    number: int,
    rows: int,
    max_length: int,
    epochs: int,
) -> dict[str, Any]:
    """Downloads the base, fine-tunes it on a generated task, hands in the body.

    Returns:
      Seconds of 'download', 'train' and 'upload', the bytes that passed, real tokens
      that were learned from, and how far each leaf went.
    """
    # Imported here: the fuser needs nothing of it.
    from training_jobs import fit_config, problem_of

    from fusion_jax.systems.experts import head_key
    from fusion_jax.systems.problem import starting_params
    from fusion_jax.training.fit import fit

    repository, counted = opened(url, cache)
    clock = Clock()
    base = repository.current()
    folder = repository.base_folder(base.round)
    seconds = {"download": clock.look()}
    encoder = hf.load(folder)
    problem = problem_of(number, encoder, rows, max_length)
    config = fit_config(epochs)
    start = starting_params(
        problem, encoder.params, encoder.params, head_key(problem.task.name, 0)
    )
    done = fit(
        problem.model,
        start,
        problem.train_batches(config),
        None,
        config,
        kind=problem.kind,
        progress=False,
    )
    trained = trees.map_with_names(lambda _, x: np.asarray(x), done.params)
    seconds["train"] = clock.look()
    hand_in(repository, trained, number, rows)
    seconds["upload"] = clock.look()
    before = trees.flatten({"encoder": encoder.params["encoder"]})
    after = trees.flatten({"encoder": trained["encoder"]})
    return {
        "seconds": seconds,
        "down": counted.down,
        "up": counted.up,
        "requests": counted.requests,
        "tokens": done.tokens,
        "norms": {
            name: float(np.linalg.norm(np.asarray(after[name] - leaf, np.float64)))
            for name, leaf in before.items()
            if name in after
        },
    }


def derived(
    url: str, cache: str, numbers: list[int], rows: int, norms: Mapping[str, float]
) -> dict[str, Any]:
    """Contributors without a training, one after another, each with an empty cache.

    Returns:
      As `contributor`, the mean of all but for the norms; no 'train'.
    """
    found = []
    for number in numbers:
        place = Path(cache) / str(number)
        repository, counted = opened(url, str(place))
        clock = Clock()
        base = repository.current()
        folder = repository.base_folder(base.round)
        download = clock.look()
        body = stepped(hf.load(folder).params, norms, number)
        clock.look()
        hand_in(repository, body, number, rows)
        found.append([download, clock.look(), counted.down, counted.up])
        shutil.rmtree(place)
    download, upload, down, up = (float(x) for x in np.mean(found, axis=0))
    return {
        "seconds": {"download": download, "upload": upload},
        "down": down,
        "up": up,
    }


def stepped(params: Params, norms: Mapping[str, float], seed: int) -> Params:
    """A body a seeded random step away, in each leaf as far as a training went."""

    def step(name: str, leaf: Any) -> np.ndarray:
        values = np.asarray(leaf)
        if not norms.get(name):
            return values
        mark = hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8]
        random = np.random.default_rng(int.from_bytes(mark, "little"))
        way = random.standard_normal(values.shape, np.float32)
        return values + way * np.float32(norms[name] / np.linalg.norm(way))

    return trees.map_with_names(step, {"encoder": params["encoder"]})


def hand_in(repository: Repository, params: Params, number: int, rows: int) -> None:
    """One contribution to the newest base."""
    submit(
        repository,
        repository.current(),
        params,
        contributor=f"contributor_{number}",
        task=f"task_{number}",
        data_sha256=hashlib.sha256(str(number).encode()).hexdigest(),
        rows=rows,
        fit={},
        seed=number,
    )


def idle(url: str, cache: str) -> dict[str, Any]:
    """What a fuser holds before it begins: its modules and the manifests."""
    repository, _ = opened(url, cache)
    return {"waiting": len(waiting_for(repository, repository.current()))}


def fuser(url: str, cache: str) -> dict[str, Any]:
    """Downloads what waits, screens, fuses and promotes it.

    Returns:
      Seconds of 'download', 'screen', 'fuse' and 'promote', bytes, and how many were
      accepted and rejected.
    """
    repository, counted = opened(url, cache)
    clock = Clock()
    parent = repository.current()
    repository.fetch(parent.weights)
    for found in waiting_for(repository, parent):
        assert found.manifest is not None, found.fault
        repository.fetch(found.manifest.weights)
    seconds = {"download": clock.look()}
    base = fuse_round(repository)
    whole = clock.look()
    seconds["screen"] = base.seconds["screen"]
    seconds["fuse"] = sum(base.seconds[name] for name in FUSE)
    # Upload of the base, its manifest, the hint, and what was listed again.
    seconds["promote"] = whole - seconds["screen"] - seconds["fuse"]
    return {
        "seconds": seconds,
        "down": counted.down,
        "up": counted.up,
        "requests": counted.requests,
        "accepted": len(base.parts),
        "rejected": [list(one.reasons) for one in base.rejected],
    }


def fuse_alone(url: str, cache: str, method: str, out: str) -> dict[str, Any]:
    """The last round's contributions fused once more, from the cache; no screen."""
    repository, _ = opened(url, cache)
    base = repository.current()
    parent = repository.base(base.round - 1)
    members = []
    for part in base.parts:
        manifest = repository.contribution(part.manifest).manifest
        assert manifest is not None
        members.append(Member(part.sha256, repository.fetch(manifest.weights)))
    file = repository.fetch(parent.weights)
    clock = Clock()
    fused = fuse(file, members, FuseOptions(method=method), Path(out))
    return {
        "seconds": clock.look(),
        "members": len(members),
        "same_as_promoted": fused.sha256 == base.weights.sha256,
    }


def opened(url: str, cache: str) -> tuple[Repository, CountingStore]:
    """A repository, and what counts the bytes that pass."""
    counted = CountingStore(open_store(url))
    return Repository(counted, Path(cache)), counted


PARTS = {
    "begin": begin,
    "contributor": contributor,
    "derived": derived,
    "idle": idle,
    "fuser": fuser,
    "fuse_alone": fuse_alone,
}


if __name__ == "__main__":
    main()
