"""Processes that are killed at any moment leave a repository that is whole."""

import random

import pytest

from fusion_jax.collaboration import layout
from fusion_jax.collaboration.rounds import fuse_round
from tests.collaboration.killed import CONFLICT, NOT_READY, finish, start
from tests.collaboration.repositories import at, hand_in, make_repository

WHO = ("ada", "bo", "cy")
KILLED = -9


def undisturbed(place, rounds):
    """Hash of the weights of each base when nobody is killed."""
    repository = make_repository(place, "undisturbed")
    hashes = []
    for round_ in range(rounds):
        for who in WHO:
            hand_in(repository, who, round_)
        hashes.append(fuse_round(repository, quorum=len(WHO)).weights.sha256)
    return hashes


def assert_whole(repository):
    """Everything that a manifest names is there and is what the manifest says."""
    for base in repository.history():
        repository.fetch(base.weights)
        for part in base.parts:
            assert repository.contribution(part.manifest).sha256 == part.manifest_sha256
    for found in repository.contributions():
        assert found.manifest is not None, found.fault
        repository.fetch(found.manifest.weights)


def storm(place, kills, seed):
    """Rounds under SIGKILL: (hashes of the bases, kills that hit)."""
    make_repository(place, "stormy")
    draw = random.Random(seed)
    root, cache = place / "stormy", place / "stormy-cache"
    hits, round_, hashes = 0, 0, []
    while hits < kills or round_ == 0:
        tasks = [("contribute", {"who": who, "seed": round_}) for who in WHO]
        draw.shuffle(tasks)
        for action, options in [*tasks, ("fuse", {"quorum": len(WHO)})]:
            code = None
            while code != 0:
                moment = None
                if hits < kills:
                    moment = (draw.randrange(24), draw.choice(("before", "after")))
                process = start(action, root, moment, cache=str(cache), **options)
                if moment is not None and draw.random() < 0.3:
                    process.join(draw.uniform(0, 0.5))
                    process.kill()
                code = finish(process)
                hits += code == KILLED
                if code == NOT_READY and action == "fuse":
                    # The one before was killed when its base was promoted already.
                    assert at(place, "stormy", "look").current().round == round_ + 1
                    code = 0
                assert code in (0, KILLED), code
        # Whoever looks, with or without what others have downloaded, sees one state.
        repository = at(place, "stormy", f"look-{round_}")
        assert_whole(repository)
        round_ += 1
        assert repository.current().round == round_
        hashes.append(repository.current().weights.sha256)
    return hashes, hits


def test_killed_contributors_and_fusers_lose_nothing(tmp_path):
    hashes, hits = storm(tmp_path, 12, seed=0)
    assert hits >= 12
    assert hashes == undisturbed(tmp_path, len(hashes))


@pytest.mark.slow
def test_two_hundred_kills_end_with_the_hashes_of_an_undisturbed_run(tmp_path):
    hashes, hits = storm(tmp_path, 200, seed=1)
    assert hits >= 200
    assert hashes == undisturbed(tmp_path, len(hashes))


@pytest.mark.slow
@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("action", ["contribute", "fuse"])
def test_a_kill_at_every_single_call_of_the_store(tmp_path, action, side):
    reference = undisturbed(tmp_path, 1)
    call, code = 0, KILLED
    while code == KILLED:
        name = f"call-{call}"
        repository = make_repository(tmp_path, name)
        first = WHO if action == "fuse" else WHO[1:]
        for who in first:
            hand_in(repository, who, 0)
        options = {"quorum": len(WHO)} if action == "fuse" else {"who": "ada"}
        code = finish(start(action, tmp_path / name, (call, side), **options))
        again = at(tmp_path, name, f"cache-again-{name}")
        assert_whole(again)
        if action == "contribute":
            hand_in(again, "ada", 0)
        assert again.current().round in (0, 1)
        if again.current().round == 0:
            fuse_round(again, quorum=len(WHO))
        assert again.base(1).weights.sha256 == reference[0]
        call += 1
    assert call > 5


def test_two_fusers_at_once_make_one_base(tmp_path):
    repository = make_repository(tmp_path)
    for who in WHO:
        hand_in(repository, who)
    root = tmp_path / "repository"
    both = [start("fuse", root, quorum=len(WHO)) for _ in range(2)]
    # Who looks when the other has ended the round finds nothing to fuse.
    codes = [finish(one) for one in both]
    assert 0 in codes and set(codes) <= {0, NOT_READY}
    again = at(tmp_path, cache="look")
    assert again.current().round == 1
    assert again.current().weights.sha256 == undisturbed(tmp_path, 1)[0]
    assert_whole(again)


def test_two_contributors_with_one_name_and_job_leave_one_contribution(tmp_path):
    repository = make_repository(tmp_path)
    root = tmp_path / "repository"
    both = [start("contribute", root, who="ada", size=s) for s in (0.05, 0.06)]
    assert sorted(finish(one) for one in both) == [0, CONFLICT]
    assert_whole(at(tmp_path, cache="look"))
    found = repository.contributions(0)
    assert [one.manifest.contributor for one in found] == ["ada"]
    assert fuse_round(repository).round == 1
    assert repository.store.size(layout.base_manifest(2)) is None
