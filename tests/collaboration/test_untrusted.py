"""What anybody may hand in stops nobody else: hostile manifests, missing objects."""

import json

import pytest

from fusion_jax.checkpoints import manifests
from fusion_jax.collaboration import layout
from fusion_jax.collaboration.export import export
from fusion_jax.collaboration.forks import fork
from fusion_jax.collaboration.fusing import FuseOptions
from fusion_jax.collaboration.repository import RepositoryError, open_repository
from fusion_jax.collaboration.rounds import fuse_round
from fusion_jax.collaboration.screening import Limits
from fusion_jax.collaboration.status import status
from fusion_jax.reports.repository import page
from tests.collaboration.repositories import at, hand_in, make_repository

LONG = "a" * 400


def planted(repository, change, run="0" * 16):
    """A manifest that somebody wrote by hand; its name."""
    honest = hand_in(repository, "ada")
    record = json.loads(manifests.dump(honest))
    folder = layout.contribution_folder(0, "eve", run)
    record["weights"]["name"] = f"{folder}{honest.weights.sha256}.safetensors"
    change(record)
    text = record if isinstance(record, str) else json.dumps(record)
    name = f"{folder}{layout.MANIFEST}"
    assert repository.store.put_if_absent(name, text.encode())
    return name


def setting(*path, value):
    def change(record):
        place = record
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
        record["contributor"], record["run"] = "eve", "0" * 16

    return change


HOSTILE = [
    ("base", None),
    ("weights", None),
    ("weights/name", "../../x.safetensors"),
    ("weights/name", f"{LONG}/{LONG}.safetensors"),
    ("weights/name", "bases/000000.json"),
    ("weights/sha256", "a\0b"),
    ("weights/sha256", "../../../escape/dir/x"),
    ("weights/sha256", LONG),
    ("weights/tensors", []),
    ("weights/bytes", 10**15),
    ("scores", None),
    ("scores", ["high"]),
    ("config", None),
    ("rows", float("nan")),
    ("base/round", -7),
    ("base/round", 10**9),
]


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_a_hostile_manifest_blocks_no_round_and_no_look(tmp_path, number):
    path, value = HOSTILE[number]
    repository = make_repository(tmp_path)
    name = planted(repository, setting(*path.split("/"), value=value))
    assert status(repository)["waiting"]
    base = fuse_round(repository)
    assert [part.contributor for part in base.parts] == ["ada"]
    later = status(at(tmp_path, cache="look"))
    assert later["round"] == 1
    assert page(later)
    # Rejected with a reason, or of a round that is not there yet.
    assert name in {one.manifest for one in base.rejected} or later["waiting"]
    assert not (tmp_path / "escape").exists()


def test_scores_that_are_no_numbers_are_left_out(tmp_path):
    repository = make_repository(tmp_path)
    name = planted(repository, setting("scores", value={"dev": "high", "f1": 0.5}))
    assert status(repository)["waiting"][-1]["scores"] == {"f1": 0.5}
    assert repository.contribution(name).manifest is not None
    fuse_round(repository)
    assert page(status(repository))


def test_text_of_endless_depth_is_no_manifest(tmp_path):
    repository = make_repository(tmp_path)
    hand_in(repository, "ada")
    name = layout.contribution_folder(0, "eve", "1" * 16) + layout.MANIFEST
    assert repository.store.put_if_absent(name, b"[" * 200_000)
    base = fuse_round(repository)
    assert [one.manifest for one in base.rejected] == [name]


def test_an_object_that_is_not_there_yet_waits_and_is_taken_when_it_comes(tmp_path):
    repository = make_repository(tmp_path)
    hand_in(repository, "ada")
    late = hand_in(repository, "bo")
    file = tmp_path / "repository" / late.weights.name
    kept = file.read_bytes()
    file.unlink()
    first = fuse_round(at(tmp_path, cache="one"))
    assert [part.contributor for part in first.parts] == ["ada"]
    assert not first.rejected
    file.write_bytes(kept)
    second = fuse_round(at(tmp_path, cache="two"))
    assert [part.contributor for part in second.parts] == ["bo"]


def test_a_manifest_for_a_newer_version_waits_for_it(tmp_path):
    repository = make_repository(tmp_path)
    planted(repository, setting("schema", value=manifests.SCHEMA + 1))
    base = fuse_round(repository)
    assert [part.contributor for part in base.parts] == ["ada"]
    assert not base.rejected
    [waits] = status(repository)["waiting"]
    assert "install a newer one" in waits["fault"]


def test_what_is_done_to_an_export_does_nothing_to_the_cache(tmp_path):
    repository = make_repository(tmp_path)
    hand_in(repository, "ada")
    base = fuse_round(repository)
    folder = export(repository, 1, tmp_path / "out")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    again = open_repository(tmp_path / "repository", cache=repository.cache)
    assert (
        manifests.sha256(again.fetch(base.weights).read_bytes()) == base.weights.sha256
    )


def test_a_cache_that_was_changed_is_downloaded_again(tmp_path):
    repository = make_repository(tmp_path)
    file = repository.fetch(repository.base(0).weights)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    again = open_repository(tmp_path / "repository", cache=repository.cache)
    wanted = again.base(0).weights
    assert manifests.sha256(again.fetch(wanted).read_bytes()) == wanted.sha256


def test_a_method_that_reads_statistics_rejects_who_has_none(tmp_path):
    repository = make_repository(tmp_path)
    hand_in(repository, "ada")
    hand_in(repository, "bo")
    with pytest.raises(ValueError, match="contribute with --statistics gram"):
        fuse_round(repository, FuseOptions(method="regmean"))
    # Nobody was rejected for good: the next fuse takes them.
    assert len(fuse_round(repository).parts) == 2


def test_a_fork_is_a_repository_to_look_at_and_to_export(tmp_path):
    repository = make_repository(tmp_path)
    for who in ("ada", "bo", "cy"):
        hand_in(repository, who)
    fuse_round(repository, FuseOptions(optimizer="momentum", clip=1.0))
    made = fork(repository, 1, ["bo"])
    found = status(made)
    assert {part["contributor"] for part in found["bases"][0]["parts"]} == {"ada", "cy"}
    assert {part["rounds_late"] for part in found["bases"][0]["parts"]} == {0}
    assert page(found)
    card = (export(made, 0, tmp_path / "out") / "README.md").read_text()
    assert "ada" in card and "momentum" in card
    # Its server goes on with what it had.
    assert made.base(0).optimizer is not None
    hand_in(made, "dee")
    assert fuse_round(made, FuseOptions(optimizer="momentum")).optimizer is not None
    with pytest.raises(RepositoryError, match="is itself a fork"):
        fork(made, 0, ["ada"])


def test_a_fork_without_many_has_a_name_all_the_same(tmp_path):
    repository = make_repository(tmp_path)
    names = [f"contributor_{i:02d}" for i in range(10)]
    for who in [*names, "ada"]:
        hand_in(repository, who)
    fuse_round(repository)
    made = fork(repository, 1, names)
    assert fork(repository, 1, names[::-1]).url == made.url
    assert fork(repository, 1, names, name="of_ada").url.endswith("of_ada")


def test_another_server_optimizer_begins_anew_and_says_so(tmp_path):
    repository = make_repository(tmp_path)
    hand_in(repository, "ada", 0)
    fuse_round(repository, FuseOptions(optimizer="momentum"))
    hand_in(repository, "ada", 1)
    base = fuse_round(repository, FuseOptions(optimizer="adam", server_rate=1e-3))
    assert "the state of momentum ends" in base.notes[0]


@pytest.mark.parametrize(
    "call,message",
    [
        ({"limits": Limits(max_age="abc")}, "max_age: 'abc' is no whole number"),
        (
            {"limits": Limits(max_relative_norm=float("inf"), deviations=-1)},
            "max_relative_norm: inf is no finite number; deviations: -1 is below 0",
        ),
        ({"options": FuseOptions(optimizer="adam")}, r"such as 0\.001"),
    ],
)
def test_limits_and_options_are_looked_at_before_anything_else(tmp_path, call, message):
    with pytest.raises(ValueError, match=message):
        fuse_round(make_repository(tmp_path), **call)


def test_a_hint_that_cannot_be_moved_fails_no_fuse(tmp_path):
    repository = make_repository(tmp_path)
    hand_in(repository, "ada")
    (tmp_path / "repository" / layout.LATEST).mkdir()
    assert fuse_round(repository).round == 1
