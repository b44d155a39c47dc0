"""A round that is over, open again; and how good the body of a fuse is."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.collaboration import layout
from fusion_jax.collaboration.repository import Found, Repository, open_repository
from fusion_jax.collaboration.stores import open_store
from fusion_jax.data import Task, load_task
from fusion_jax.data.tokenise import load_tokenizer
from fusion_jax.systems.experts import head_key
from fusion_jax.systems.problem import make_problem, starting_params
from fusion_jax.systems.saved_model import score_splits
from fusion_jax.training.config import FitConfig
from fusion_jax.training.probe import fit_head

PROBE = FitConfig(
    epochs=0, head_epochs=10, head_learning_rate=1e-2, dropout=False, select="last"
)
"""Of a probe's head."""


class Sizes(NamedTuple):
    """How a body is probed.

    Attributes:
      max_length: tokens of an input.
      train: rows that a head is trained on.
      test: rows that it is scored on.
    """

    max_length: int
    train: int
    test: int


def reopened(url: str, round_: int, names: Sequence[str], folder: Path) -> Repository:
    """A copy of a repository as it was when contributions to a base were waiting.

    Args:
      url: of the repository, which stays as it is.
      round_: of that base.
      names: of the contributors that are taken along.
      folder: of the copy and of its cache; a copy that is there is taken.

    Raises:
      SystemExit: somebody of `names` has not contributed to that base.
    """
    source, target = open_store(url), open_store(folder / "repository")
    last = layout.base_manifest(round_)
    if target.size(last) is None:
        wanted = [
            name
            for name in source.list("")
            if name.startswith("model/") or _of_rounds(name, round_, names)
        ]
        # What a manifest names comes before it, and the newest base last.
        wanted.sort(key=lambda name: (name.endswith(".json"), name == last, name))
        with tempfile.TemporaryDirectory() as place:
            for name in wanted:
                file = Path(place) / "object"
                source.download(name, file)
                target.upload(file, name)
                file.unlink()
    repository = open_repository(folder / "repository", cache=folder / "cache")
    missing = set(names) - set(waiting(repository, names))
    if missing:
        raise SystemExit(
            f"{url}: {', '.join(sorted(missing))} did not contribute to base {round_}"
        )
    return repository


def _of_rounds(name: str, round_: int, names: Sequence[str]) -> bool:
    first, _, rest = name.partition("/")
    if f"{first}/" == layout.BASES:
        return rest[:6].isdigit() and int(rest[:6]) <= round_
    prefix = layout.contributions(round_)
    return name.startswith(prefix) and name[len(prefix) :].split("/")[0] in names


def waiting(repository: Repository, names: Sequence[str]) -> dict[str, Found]:
    """Contributor -> what he handed in to the newest base."""
    found = repository.contributions(repository.current().round)
    own = {one.manifest.contributor: one for one in found if one.manifest is not None}
    return {name: own[name] for name in names if name in own}


class Probes:
    """Heads on a frozen body, trained and scored on rows that no contributor had."""

    def __init__(
        self, repository: Repository, data: Path, names: Sequence[str], sizes: Sizes
    ) -> None:
        """Tokenises the rows once."""
        self._repository = repository
        self._encoder = hf.load(repository.base_folder(0))
        tokenizer = load_tokenizer(self._encoder.path)
        self._problems = {
            name: make_problem(
                _parted(load_task(data / name, use_partial=True), sizes),
                self._encoder,
                tokenizer,
                max_length=sizes.max_length,
                splits=("train", "test"),
            )
            for name in names
        }

    def __call__(self, file: Path) -> dict[str, float]:
        """Accuracy by task of a file of weights."""
        with self._repository.scratch() as place:
            self._repository.write_model(place / "model", file)
            body = hf.load(place / "model").params
        found = {}
        for name, problem in self._problems.items():
            start = starting_params(
                problem, body, self._encoder.params, head_key(name, 0)
            )
            trained = fit_head(
                problem.model,
                start,
                problem.encoded["train"],
                None,
                PROBE,
                kind=problem.kind,
                metrics=problem.metrics,
                name=f"probe on {name}",
                progress=False,
            )
            found[name] = score_splits(problem, trained.params, ["test"])["test"].mean
        return found


def _parted(task: Task, sizes: Sizes) -> Task:
    """Test rows alone: some of them train a head, others score it."""
    rows = task.rows("test")
    order = np.random.default_rng(0).permutation(len(rows))
    train, test = order[: sizes.train], order[sizes.train :][: sizes.test]
    splits = {
        "train": tuple(rows[row] for row in train),
        "test": tuple(rows[row] for row in test),
    }
    return replace(task, splits=splits, metrics=("accuracy",))
