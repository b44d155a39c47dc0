"""Every config file: it loads, runs small when asked, and refuses what it knows not."""

import re
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from fusion_jax.cli.configure import read_config
from fusion_jax.cli.failures import WrongUsage
from fusion_jax.systems.folders import (
    cold_on_folders,
    dataless_on_folders,
    dfwe_on_folders,
    finetune_on_folder,
    portability_on_folders,
    selection_on_folders,
)
from fusion_jax.training.config import FitConfig

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "configs").rglob("*.py"))
LOCAL = [path for path in FILES if path.stem == "local"]


def name(path):
    return f"{path.parent.name}/{path.stem}"


def fits(config):
    return {
        field: value.to_dict()
        for field, value in config.items()
        if isinstance(value, ConfigDict) and "learning_rate" in value
    }


def test_there_are_configs():
    assert {
        "cold_fusion/quickstart",
        "cold_fusion/local",
        "dataless_fusion/quickstart",
        "dataless_fusion/local",
        "dfwe/quickstart",
        "dfwe/local",
        "finetune/quickstart",
        "finetune/local",
        "portability/quickstart",
        "portability/local",
        "portability/sentiment",
        "task_selection/quickstart",
        "task_selection/local",
        "task_selection/sentiment58",
    } <= set(map(name, FILES))


@pytest.mark.parametrize("path", FILES, ids=name)
def test_loads_with_fits_that_can_be_made(path):
    config = read_config(str(path))
    assert config.system == path.parent.name
    assert fits(config)
    for options in fits(config).values():
        FitConfig(**options)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_smoke_makes_it_smaller_and_adds_no_field(path):
    whole, small = read_config(str(path)), read_config(f"{path}:smoke")
    assert set(small) == set(whole)
    assert all(options["epochs"] <= 1 for options in fits(small).values())
    if "search" in small:
        assert small.search.budget < whole.search.budget
    if "rounds" in small:
        assert small.rounds < whole.rounds


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_mistyped_option_is_answered_with_the_nearest(path):
    with pytest.raises(WrongUsage, match=r"'smok' is unknown; did you mean 'smoke'\?"):
        read_config(f"{path}:smok")


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_mistyped_field_is_refused_once_the_config_is_locked(path):
    config = read_config(str(path)).lock()
    with pytest.raises(AttributeError, match="max_lenght"):
        config.max_lenght = 8


@pytest.mark.parametrize("path", FILES, ids=name)
def test_the_docstring_gives_a_command_that_is_this_file(path):
    text = path.read_text()
    said = text.split('"""')[1]
    assert f"--config={path.relative_to(ROOT).as_posix()}" in said
    assert re.search(r"^Options: ", said, re.M) and "smoke" in said


def plain(config):
    """Values without the difference of list and tuple."""
    return {
        field: plain(value)
        if isinstance(value, ConfigDict)
        else list(value)
        if isinstance(value, tuple)
        else value
        for field, value in config.items()
    }


@pytest.mark.parametrize("path", LOCAL, ids=name)
def test_a_command_on_a_folder_runs_what_the_local_config_runs(path, tmp_path):
    made = {
        "cold_fusion": cold_on_folders,
        "dataless_fusion": dataless_on_folders,
        "dfwe": dfwe_on_folders,
        "finetune": finetune_on_folder,
        "portability": portability_on_folders,
        "task_selection": selection_on_folders,
    }
    config = made[path.parent.name](tmp_path / "task")
    assert plain(config) == plain(read_config(f"{path}:data={tmp_path / 'task'}"))


def test_local_options_reach_their_fields():
    config = read_config(
        f"{ROOT}/configs/finetune/local.py:data=/a/b,shots=8,seed=3,encoder=E,"
        "max_length=20"
    )
    assert (config.data.path, config.target) == ("/a", "b")
    assert (config.shots, config.seed, config.max_length) == (8, 3, 20)
    assert config.encoder == "E"
