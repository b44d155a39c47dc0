"""A run's folder: continued, refused, started anew; and parameters kept in files."""

import contextlib
import json
import os
import resource

import numpy as np
import pytest

from fusion_jax.atomic import WriteFailed
from fusion_jax.checkpoints.tensors import CheckpointError
from fusion_jax.systems.workdir import ConfigChanged, cached_params, open_workdir
from fusion_jax.training.log import MetricsLog

PARAMS = {"head": {"kernel": np.arange(12, dtype=np.float32).reshape(3, 4)}}


@contextlib.contextmanager
def full_disk(limit):
    """No file of this process grows beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_folder_with_a_run_of_another_config_is_refused(tmp_path):
    open_workdir(tmp_path, {"a": 1, "b": {"c": (1, 2)}})
    (tmp_path / "experts").mkdir()
    open_workdir(tmp_path, {"a": 1, "b": {"c": [1, 2]}})
    with pytest.raises(ConfigChanged) as refused:
        open_workdir(tmp_path, {"a": 2, "b": {"c": [1], "d": 0}})
    for line in ("config.a: 1 there, 2", "config.b.c: [1, 2]", "config.b.d: None"):
        assert line in str(refused.value)
    assert json.loads((tmp_path / "config.json").read_text())["a"] == 1


def test_a_run_that_did_not_begin_holds_nobody_to_its_config(tmp_path):
    open_workdir(tmp_path, {"targets": ["flim"]})
    open_workdir(tmp_path, {"targets": ["film"]})
    assert json.loads((tmp_path / "config.json").read_text())["targets"] == ["film"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_results_of_runs_in_folders_below_are_left_alone(tmp_path, overwrite):
    other = tmp_path / "monday"
    for place in (other, other / "film" / "seed_0"):
        place.mkdir(parents=True)
        (place / "results.json").write_text("{}")
    open_workdir(tmp_path, {"a": 1}, overwrite=overwrite)
    assert len(list(tmp_path.rglob("results.json"))) == 2


def test_starting_anew_removes_the_results_and_keeps_the_experts(tmp_path):
    open_workdir(tmp_path, {"a": 1})
    kept = tmp_path / "experts" / "film.safetensors"
    for file in (
        tmp_path / "results.json",
        tmp_path / "film" / "seed_0" / "results.json",
        kept,
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    open_workdir(tmp_path, {"a": 2}, overwrite=True)
    assert not list(tmp_path.rglob("results.json"))
    assert kept.is_file()


def test_results_without_a_config_are_not_taken_for_this_run_s(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ConfigChanged, match=r"results\.json.*--overwrite"):
        open_workdir(tmp_path, {"a": 1})
    assert (tmp_path / "results.json").is_file()


def test_parameters_are_computed_once(tmp_path):
    file = tmp_path / "experts" / "film.safetensors"
    made, there = cached_params(file, lambda: PARAMS)
    found, again = cached_params(file, lambda: pytest.fail("computed again"))
    assert (there, again) == (False, True)
    np.testing.assert_array_equal(found["head"]["kernel"], made["head"]["kernel"])
    assert os.listdir(file.parent) == ["film.safetensors"]


def test_a_file_that_was_cut_off_is_named_with_the_way_out(tmp_path):
    file = tmp_path / "film.safetensors"
    cached_params(file, lambda: PARAMS)
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=r"film\.safetensors.*remove it"):
        cached_params(file, lambda: PARAMS)


def test_parameters_that_are_not_finite_are_not_kept(tmp_path):
    broken = {"head": {"kernel": np.full((2, 2), np.nan, np.float32)}}
    with pytest.raises(CheckpointError, match=r"film.*head/kernel \(4 of 4\)"):
        cached_params(tmp_path / "film.safetensors", lambda: broken)
    assert not os.listdir(tmp_path)


def test_a_full_disk_leaves_no_part_of_the_parameters(tmp_path):
    file = tmp_path / "film.safetensors"
    large = {"kernel": np.zeros(10_000, np.float32)}
    with pytest.raises(WriteFailed, match=r"disk is full.*film\.safetensors"):
        with full_disk(8192):
            cached_params(file, lambda: large)
    assert not os.listdir(tmp_path)
    cached_params(file, lambda: large)
    assert file.is_file()


def test_a_full_disk_leaves_the_log_as_it_was(tmp_path):
    log = MetricsLog(tmp_path)
    log.write([{"step": 1}])
    before = (tmp_path / "metrics.jsonl").read_text()
    with pytest.raises(WriteFailed, match=r"disk is full.*metrics\.jsonl"):
        with full_disk(8192):
            log.write([{"step": n, "text": "word " * 20} for n in range(100)])
    assert (tmp_path / "metrics.jsonl").read_text() == before
    log.write([{"step": 2}])
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
