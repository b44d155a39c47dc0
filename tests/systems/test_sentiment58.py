"""The 58 sentiment tasks, from real files where they are at hand."""

import warnings
from pathlib import Path

import pytest

from fusion_jax.cli.configure import read_config
from fusion_jax.systems.selection_tasks import selection_tasks

CONFIG = Path(__file__).resolve().parents[2] / "configs/task_selection/sentiment58.py"


def test_the_config_names_58_tasks():
    config = read_config(str(CONFIG))
    assert len(set(config.tasks)) == 58
    parts = [name for name in config.tasks if name.startswith("arsc_")]
    assert len(parts) == 33 and set(parts) == set(config.data.tasks)


@pytest.mark.slow
def test_all_of_them_take_part_with_one_label_space(real_data):
    config = read_config(f"{CONFIG}:data={real_data}")
    if not all((real_data / name).is_dir() for name in ("arsc_baby", "mpqa", "fdu_mr")):
        pytest.skip("not all of the 58 tasks are in the folder of real data")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = selection_tasks(config)
    assert list(read.tasks) == list(config.tasks) and not read.left_out
    assert {task.labels for task in read.tasks.values()} == {("negative", "positive")}
    # Sentences of one pool are in three collections.
    assert read.shared["mr"] > 1000 and read.shared["sst2"] > 500
    assert all(len(task.rows("train")) <= 256 for task in read.tasks.values())
    assert all(len(task.rows("test")) <= 64 for task in read.tasks.values())
