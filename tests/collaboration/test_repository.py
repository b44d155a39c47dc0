"""A repository on a folder: bases, contributions, rounds, forks, exports."""

import json
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy

from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.checkpoints import manifests
from fusion_jax.checkpoints.manifests import ManifestError
from fusion_jax.collaboration import layout
from fusion_jax.collaboration.export import export
from fusion_jax.collaboration.forks import fork
from fusion_jax.collaboration.fusing import FuseOptions
from fusion_jax.collaboration.repository import (
    RepositoryError,
    init_repository,
    open_repository,
)
from fusion_jax.collaboration.rounds import NotReady, fuse_round
from fusion_jax.collaboration.screening import Limits
from fusion_jax.collaboration.status import status
from fusion_jax.collaboration.store import Conflict
from fusion_jax.collaboration.submission import submit
from fusion_jax.trees import TreeMismatch, flatten
from tests.collaboration.repositories import (
    FIT,
    at,
    hand_in,
    leaves,
    make_repository,
    stepped,
)
from tests.small_models import write_model


def test_base_0_is_the_model_that_it_was_made_from(tmp_path):
    repository = make_repository(tmp_path)
    made, given = hf.load(repository.base_folder(0)), hf.load(tmp_path / "base")
    assert made.sha256 == given.sha256
    assert (repository.base_folder(0) / "tokenizer.json").is_file()
    assert repository.current().round == 0


def test_init_again_finds_the_same_and_refuses_another(tmp_path):
    first = make_repository(tmp_path)
    assert make_repository(tmp_path).base(0) == first.base(0)
    write_model(tmp_path / "other", seed=1)
    with pytest.raises(RepositoryError, match="already, with another base"):
        init_repository(tmp_path / "repository", tmp_path / "other")


def test_a_place_without_a_repository_says_how_to_make_one(tmp_path):
    with pytest.raises(RepositoryError, match="fusion-jax repository init"):
        open_repository(tmp_path / "nothing")


def test_a_round_is_the_mean_of_its_contributions_whatever_their_order(tmp_path):
    rounds = []
    for name, order in (("a", "xyz"), ("b", "zyx")):
        repository = make_repository(tmp_path, name)
        for who in order:
            hand_in(repository, who)
        rounds.append(fuse_round(repository))
    assert rounds[0].weights.sha256 == rounds[1].weights.sha256
    assert [part.contributor for part in rounds[0].parts] == [
        part.contributor for part in rounds[1].parts
    ]
    before = hf.load(repository.base_folder(0)).params
    expected = [flatten(stepped(before, f"{who}/0")) for who in "xyz"]
    for leaf, value in leaves(repository, 1).items():
        mean = np.mean([np.asarray(e[leaf], np.float64) for e in expected], axis=0)
        np.testing.assert_array_equal(value, mean.astype(np.float32))
    assert rounds[0].parent == repository.base(0).reference
    assert all(part.weight == pytest.approx(1 / 3) for part in rounds[0].parts)
    assert set(rounds[0].verdicts) == {part.manifest for part in rounds[0].parts}
    assert rounds[0].memory["peak_bytes"] > 0


def test_one_contributor_gives_that_contributor(tmp_path):
    repository = make_repository(tmp_path)
    one = hand_in(repository, "ada")
    assert fuse_round(repository).weights.sha256 == one.weights.sha256


def test_heads_never_reach_the_store(tmp_path):
    repository = make_repository(tmp_path)
    hand_in(repository, "ada", head=0.25)
    hand_in(repository, "bo")
    names = {
        tensor
        for name in repository.store.list("contributions/")
        if name.endswith(".safetensors")
        for tensor in safetensors.numpy.load_file(tmp_path / "repository" / name)
    }
    base = safetensors.numpy.load_file(repository.base_folder(0) / "model.safetensors")
    assert names == set(base)


def test_a_repeated_job_finds_what_it_handed_in(tmp_path):
    repository = make_repository(tmp_path)
    first = hand_in(repository, "ada")
    before = repository.store.list("")
    assert hand_in(repository, "ada") == first
    assert repository.store.list("") == before


def test_one_name_with_two_results_of_one_job_is_a_conflict_and_the_first_stays(
    tmp_path,
):
    repository = make_repository(tmp_path)
    first = hand_in(repository, "ada")
    with pytest.raises(Conflict, match="the first one counts"):
        hand_in(repository, "ada", size=0.07)
    assert fuse_round(repository).weights.sha256 == first.weights.sha256


def test_two_jobs_of_one_name_are_two_contributions(tmp_path):
    repository = make_repository(tmp_path)
    hand_in(repository, "ada", 0)
    hand_in(repository, "ada", 1)
    assert len(fuse_round(repository).parts) == 2


def test_a_model_of_another_shape_is_refused_with_every_leaf(tmp_path):
    repository = make_repository(tmp_path)
    base = repository.current()
    params = dict(hf.load(repository.base_folder(0)).params)
    params["encoder"] = {**params["encoder"], "extra": np.zeros(3, np.float32)}
    with pytest.raises(TreeMismatch, match="encoder/extra: not in the base"):
        submit(
            repository,
            base,
            params,
            contributor="ada",
            task="film",
            data_sha256="0" * 64,
            rows=1,
            fit=FIT,
            seed=0,
        )
    assert not repository.store.list("contributions/")


def test_the_quorum_is_told_and_a_deadline_takes_what_is_there(tmp_path):
    repository = make_repository(tmp_path)
    with pytest.raises(NotReady, match="0 contributions that can be fused"):
        fuse_round(repository, quorum=1, deadline=0.01, poll=0.01)
    hand_in(repository, "ada")
    with pytest.raises(NotReady, match=r"1 contributions .* 2 are needed"):
        fuse_round(repository, quorum=2)
    base = fuse_round(repository, quorum=2, deadline=0.05, poll=0.01)
    assert len(base.parts) == 1


def test_a_late_contribution_moves_the_newest_base_by_its_own_delta(tmp_path):
    repository = make_repository(tmp_path)
    hand_in(repository, "ada")
    first = fuse_round(repository)
    late = hand_in(repository, "bo", base=repository.base(0))
    on_time = hand_in(repository, "cy")
    second = fuse_round(repository, FuseOptions(discount=0.25))
    by_age = {part.contributor: part for part in second.parts}
    assert by_age["bo"].base_round == 0 and by_age["cy"].base_round == 1
    assert by_age["bo"].weight == pytest.approx(0.8 / 1.8)
    old, new = leaves(repository, 0), leaves(repository, 1)
    files = tmp_path / "repository"
    for leaf, value in leaves(repository, 2).items():
        name = hf_name(repository, leaf)
        of_late = safetensors.numpy.load_file(files / late.weights.name)[name]
        of_other = safetensors.numpy.load_file(files / on_time.weights.name)[name]
        of_late, of_other = (oriented(x, value) for x in (of_late, of_other))
        moved = (
            new[leaf]
            + (
                0.8 * (of_late.astype(np.float64) - old[leaf])
                + 1.0 * (of_other.astype(np.float64) - new[leaf])
            )
            / 1.8
        )
        np.testing.assert_allclose(value, moved, rtol=2e-7, atol=1e-9)
    assert first.round == 1 and second.round == 2


def hf_name(repository, leaf):
    from fusion_jax.models.names import encoder_entries

    config = hf.load(repository.base_folder(0)).config
    entries = {e.leaf: e.source for e in encoder_entries(config, prefixed=False)}
    return entries[leaf]


def oriented(array, like):
    """A tensor of a file as our leaf has it."""
    turned = array.T if array.ndim == 2 else array
    return turned if turned.shape == like.shape and array.ndim == 2 else array


def test_too_old_contributions_are_rejected_once_and_the_reason_stands(tmp_path):
    repository = make_repository(tmp_path)
    for round_ in range(2):
        hand_in(repository, "ada", round_)
        fuse_round(repository)
    hand_in(repository, "bo", base=repository.base(0))
    hand_in(repository, "ada", 9)
    base = fuse_round(repository, limits=Limits(max_age=1))
    assert [one.contributor for one in base.rejected] == ["bo"]
    assert not status(repository)["waiting"]


def test_a_damaged_object_is_named_and_not_used(tmp_path):
    repository = make_repository(tmp_path)
    hand_in(repository, "ada")
    base = fuse_round(repository)
    file = tmp_path / "repository" / base.weights.name
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(RepositoryError, match=r"bases/000001/.*damaged or replaced"):
        at(tmp_path, cache="another").base_folder(1)


def test_a_base_that_is_not_what_its_manifest_says_stops_every_reader(tmp_path):
    make_repository(tmp_path)
    file = tmp_path / "repository" / layout.base_manifest(0)
    record = json.loads(file.read_text())
    file.unlink()
    file.write_text(json.dumps({**record, "round": 3}))
    with pytest.raises(ManifestError, match="says that it is of round 3"):
        at(tmp_path).current()
    file.write_text(json.dumps({**record, "schema": 99}))
    with pytest.raises(ManifestError, match="install a newer one"):
        at(tmp_path).current()
    file.write_text("{")
    with pytest.raises(ManifestError, match="no JSON"):
        at(tmp_path).current()


def test_an_unreadable_contribution_is_rejected_and_the_others_are_fused(tmp_path):
    repository = make_repository(tmp_path)
    hand_in(repository, "ada")
    bad = layout.contribution_folder(0, "eve", "0" * 16) + layout.MANIFEST
    assert repository.store.put_if_absent(bad, b"{}")
    base = fuse_round(repository)
    assert [part.contributor for part in base.parts] == ["ada"]
    assert [one.manifest for one in base.rejected] == [bad]
    assert base.rejected[0].reasons


def test_a_copied_manifest_is_not_taken_for_a_second_contribution(tmp_path):
    repository = make_repository(tmp_path)
    one = hand_in(repository, "ada")
    place = layout.contribution_folder(0, "eve", one.run) + layout.MANIFEST
    assert repository.store.put_if_absent(place, manifests.dump(one))
    base = fuse_round(repository)
    assert len(base.parts) == 1
    assert "copied or edited" in base.rejected[0].reasons[0]


def test_a_fork_leaves_somebody_out_and_overwrites_nothing(tmp_path):
    repository = make_repository(tmp_path)
    for who in ("ada", "bo", "eve"):
        hand_in(repository, who)
    base = fuse_round(repository)
    before = set(repository.store.list(""))
    made = fork(repository, 1, ["eve"], reason="her rows were mislabelled")
    assert before <= set(repository.store.list(""))
    first = made.base(0)
    assert (
        first.fork_of == base.reference and first.parent == repository.base(0).reference
    )
    assert first.reason == "her rows were mislabelled"
    assert [part.contributor for part in first.parts] == [
        part.contributor for part in base.parts if part.contributor != "eve"
    ]
    alone = make_repository(tmp_path, "alone")
    for who in ("ada", "bo"):
        hand_in(alone, who)
    assert fuse_round(alone).weights.sha256 == first.weights.sha256
    # It is a repository of its own, and found again.
    assert fork(repository, 1, ["eve"]).base(0) == first
    opened = open_repository(made.url, cache=tmp_path / "of-the-fork")
    hand_in(opened, "cy")
    assert fuse_round(opened).round == 1
    assert status(repository)["forks"] == ["round_1_without_eve"]


def test_a_fork_names_who_is_there(tmp_path):
    repository = make_repository(tmp_path)
    hand_in(repository, "ada")
    fuse_round(repository)
    with pytest.raises(ValueError, match="no contribution of zed; it has some of ada"):
        fork(repository, 1, ["zed"])
    with pytest.raises(RepositoryError, match="no contribution is left"):
        fork(repository, 1, ["ada"])
    with pytest.raises(RepositoryError, match="was not fused"):
        fork(repository, 0, ["ada"])


def test_an_export_opens_as_a_model_and_tells_its_parents(tmp_path):
    repository = make_repository(tmp_path)
    for who in ("ada", "bo"):
        hand_in(repository, who)
    base = fuse_round(repository)
    folder = export(repository, 1, tmp_path / "out")
    assert hf.load(folder).sha256 == hf.load(repository.base_folder(1)).sha256
    card = (folder / "README.md").read_text()
    for word in ("ada", "bo", base.weights.sha256, repository.base(0).weights.sha256):
        assert word in card
    with pytest.raises(FileExistsError, match="--overwrite"):
        export(repository, 1, tmp_path / "out")


def test_the_hint_of_the_newest_round_is_never_trusted(tmp_path):
    repository = make_repository(tmp_path)
    for seed in range(3):
        hand_in(repository, "ada", seed)
        fuse_round(repository)
    file = tmp_path / "repository" / layout.LATEST
    assert json.loads(file.read_text())["round"] == 3
    for text in ('{"round": 99}', '{"round": 1}', "nonsense", '{"round": -4}'):
        file.write_text(text)
        assert at(tmp_path).current().round == 3
    file.unlink()
    assert at(tmp_path).current().round == 3


def test_manifests_round_trip_and_name_every_fault(tmp_path):
    repository = make_repository(tmp_path)
    one = hand_in(repository, "ada")
    assert manifests.load(type(one), manifests.dump(one), "x") == one
    record = json.loads(manifests.dump(one))
    record["rows"], record["weights"] = "many", {"name": 3}
    with pytest.raises(ManifestError) as error:
        manifests.load(type(one), json.dumps(record).encode(), "x")
    for word in ("rows is 'many'", "weights.name is 3", "weights.sha256 is missing"):
        assert word in str(error.value)
    newer = json.dumps({**json.loads(manifests.dump(one)), "more": 1}).encode()
    assert manifests.load(type(one), newer, "x") == replace(one)
