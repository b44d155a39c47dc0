"""The attacks are what they say, and a screen of tiny contributions answers."""

import importlib
from pathlib import Path

import numpy as np
import pytest

from fusion_jax.collaboration.rounds import fuse_round, waiting_for
from tests.collaboration.repositories import hand_in, make_repository

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench"
SIZE = 0.01  # of an honest way


@pytest.fixture(scope="module")
def script():
    """The scripts of the folder by name; each finds the others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCH)
        yield importlib.import_module


@pytest.fixture(scope="module")
def played(script, tmp_path_factory):
    """(repository of four rounds, six honest contributions, scene, folder)."""
    place = tmp_path_factory.mktemp("attacks")
    repository = make_repository(place)
    for round_ in range(4):
        hand_in(repository, "history", round_, size=SIZE)
        fuse_round(repository)
    names = [*"abcdef", "own"]
    for name in names:
        hand_in(repository, name, size=SIZE)
    waiting = waiting_for(repository, repository.current())
    found = {one.manifest.contributor: one for one in waiting}
    scene = script("attacks").scene_of(repository, found.pop("own"), found["a"])
    return repository, found, scene, place / "attacks"


@pytest.fixture(scope="module")
def screened(script, played):
    """Attack -> whom the screen refuses by which checks."""
    repository, honest, scene, folder = played
    answers = {}
    for name in script("attack_contributions").ATTACKS:
        bad, _ = script("attack_contributions").hand_in(repository, name, scene, folder)
        said = script("attacks").screened(repository, honest, bad)
        answers[name] = {
            who: [reason.partition(":")[0] for reason in reasons]
            for who, reasons in said["refused"].items()
        }
    return answers


@pytest.mark.parametrize(
    "name, check",
    [
        ("nan", "finite"),
        ("shape", "tensors"),
        ("pickle", "format"),
        ("disguised", "header"),
        ("100x", "norm"),
        ("stale", "age"),
        ("zero", "new"),
    ],
)
def test_what_is_broken_is_refused_for_what_it_is(screened, name, check):
    assert check in screened[name]["attacker"]
    assert set(screened[name]) == {"attacker"}


def test_weights_that_were_never_the_base_are_refused_for_their_distance(screened):
    # A tiny random base is nearer to other random weights than a trained one.
    assert set(screened["random"]["attacker"]) <= {"norm", "cohort"}


def test_of_two_that_are_the_same_one_is_refused(screened):
    (refused,) = screened["duplicate"].items()
    assert refused[0] in ("attacker", "a") and refused[1] == ["duplicate"]


@pytest.mark.parametrize("name", ["honest", "flipped"])
def test_what_is_as_long_as_honest_work_passes(screened, name):
    assert not screened[name]


def test_attacks_are_the_multiples_they_say(script, played):
    _, _, scene, _ = played
    attacks = script("attack_contributions").ATTACKS
    name = next(n for n, x in scene.base.items() if x.dtype.kind == "f")
    way = scene.own[name].astype(np.float64) - scene.base[name]
    for attack, factor in (("flipped", -1), ("3x", 3), ("100x", 100)):
        made = attacks[attack].make(scene)[name].astype(np.float64)
        np.testing.assert_allclose(made - scene.base[name], factor * way, atol=1e-5)
    stale = attacks["stale"].make(scene)[name].astype(np.float64)
    np.testing.assert_allclose(stale - scene.first[name], way, atol=1e-5)


def test_a_fuse_without_a_screen_says_why_it_cannot(script, played):
    repository, honest, scene, folder = played
    attacks = script("attacks")
    members = attacks.members_of(repository, honest)

    def score(file):
        return {"size": float(file.stat().st_size)}

    for name in ("nan", "shape", "pickle"):
        bad, file = script("attack_contributions").hand_in(
            repository, name, scene, folder
        )
        member = attacks.member_of(repository, bad, file)
        for rule in ("mean", "krum"):
            said = attacks.fused(repository, [*members, member], rule, score)
            assert "refused" in said, (name, rule)
    said = attacks.fused(repository, members, "mean", score)
    assert said["mean"] == repository.current().weights.bytes


def test_a_round_is_open_again_in_a_copy(script, tmp_path):
    repository = make_repository(tmp_path)
    for name in "abc":
        hand_in(repository, name, size=SIZE)
    first = fuse_round(repository)
    for name in "abd":
        hand_in(repository, name, size=SIZE)
    fuse_round(repository)
    round_ = script("attack_round")
    copy = round_.reopened(repository.url, 1, ["a", "d"], tmp_path / "copy")
    assert copy.current() == first
    found = waiting_for(copy, first)
    assert sorted(one.manifest.contributor for one in found) == ["a", "d"]
    assert set(round_.waiting(copy, ["d"])) == {"d"}
    assert repository.current().round == 2
    with pytest.raises(SystemExit, match="c did not contribute to base 1"):
        round_.reopened(repository.url, 1, ["a", "c"], tmp_path / "other")


def test_a_measurement_is_made_once(script, tmp_path):
    lines = script("attacks").Lines
    lines(tmp_path / "lines").once("a", "mean", lambda: {"mean": 0.5})
    again = lines(tmp_path / "lines")
    again.once("a", "mean", lambda: pytest.fail("measured again"))
    assert again.found == {"a": {"mean": {"mean": 0.5}}}


def test_the_table_says_who_is_refused(script):
    verdict = script("attack_table").verdict
    assert verdict({}) == "passes"
    assert verdict({"attacker": ["norm: far", "finite: no"]}) == "refused: norm, finite"
    assert verdict({"a": ["duplicate: x"]}) == "refused: duplicate (a)"
