"""The probe of a screen tells a body that knows words from one that was overwritten."""

from dataclasses import replace

import pytest

from fusion_jax import trees
from fusion_jax.collaboration.rounds import fuse_round
from fusion_jax.collaboration.screening import Limits
from fusion_jax.data import TaskError
from fusion_jax.systems.contribution import contribute
from fusion_jax.systems.held_out import RECIPE, held_out_probe
from fusion_jax.training.config import FitConfig
from tests.collaboration.repositories import hand_in, make_repository
from tests.small_models import sentences, write_task

HEAD = replace(RECIPE, head_epochs=30, batch_size=4, head_learning_rate=5e-2)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A repository whose base 1 has learned what decides the held-out task."""
    root = tmp_path_factory.mktemp("probed")
    for name in ("film", "held_out"):
        write_task(root / name, train=sentences(48), dev=sentences(24, 1))
    repository = make_repository(root)
    fit = FitConfig(epochs=12, batch_size=8, learning_rate=5e-3, dropout=False)
    contribute(repository, root / "film", fit=fit, max_length=16, workdir=root / "work")
    fuse_round(repository, limits=Limits(max_relative_norm=10))
    return root


def without_words(encoder):
    """Every word is the mean of all words: finite, of ordinary size, and useless."""

    def blurred(name, leaf):
        if name != "embeddings/word/embedding":
            return leaf
        return leaf * 1e-4 + leaf.mean(axis=0)

    return trees.map_with_names(blurred, encoder)


def test_a_probe_rejects_a_body_that_was_overwritten(place):
    repository = make_repository(place)
    probe = held_out_probe(repository, place / "held_out", max_length=16, fit=HEAD)
    file = repository.fetch(repository.base(1).weights)
    knows = probe(file)
    assert knows > 0.9
    assert probe(file) == knows
    hand_in(repository, "ada", size=0.001)
    hand_in(repository, "eve", size=0.001, change=without_words)
    base = fuse_round(
        repository, limits=Limits(max_relative_norm=10, probe_drop=0.2), probe=probe
    )
    assert [part.contributor for part in base.parts] == ["ada"]
    assert [one.contributor for one in base.rejected] == ["eve"]
    assert "probe" in base.rejected[0].reasons[0]
    numbers = base.verdicts[base.parts[0].manifest]["numbers"]
    assert numbers["probe_base"] == pytest.approx(knows)


def test_a_probe_without_rows_is_refused(place, tmp_path):
    with pytest.raises((TaskError, FileNotFoundError)):
        held_out_probe(make_repository(place), tmp_path / "nothing")
