import argparse
import json

import pytest

from fusion_jax.cli import cold_fusion
from fusion_jax.cli.runs import make_config
from fusion_jax.systems.folders import cold_on_folders
from tests.small_models import write_task


def config_of(*arguments):
    parser = argparse.ArgumentParser()
    cold_fusion.add_arguments(parser)
    options = parser.parse_args(list(arguments))
    return make_config(options, cold_on_folders, cold_fusion.FIELDS)


def test_every_option_reaches_its_field():
    config = config_of(
        *("--data", "tasks", "--tasks", "A+B", "--rounds", "3", "--contributors", "2"),
        *("--folds", "4", "--fold", "1", "--few-shot", "16", "--shots", "64"),
        *("--method", "ties", "--server-rate", "0.5", "--repository", "s3://b/r"),
        *("--seeds", "2", "--seed", "5", "--encoder", "E", "--set", "head=kept"),
        *("--set", "limits.max_age=1", "--set", "evaluate_rounds=[0, 2]"),
    )
    assert (config.data.reader, config.data.path) == ("folders", "tasks")
    assert (config.tasks, config.rounds, config.contributors) == (("A", "B"), 3, 2)
    assert (config.folds, config.fold, config.few_shot) == (4, 1, 16)
    assert (config.fuse.method, config.fuse.server_rate) == ("ties", 0.5)
    assert (config.repository, config.seeds, config.seed) == ("s3://b/r", 2, 5)
    assert (config.shots, config.encoder, config.head) == (64, "E", "kept")
    assert (config.limits.max_age, config.evaluate_rounds) == (1, (0, 2))


def test_options_not_given_leave_the_config_as_it_is():
    assert config_of("--data", "tasks").to_dict() == cold_on_folders("tasks").to_dict()


def test_an_unknown_merge_is_answered_before_anything_is_trained(
    command, place, tmp_path
):
    code, out, error = command(
        *("cold-fusion", "--data", tmp_path, "--encoder", place / "encoder"),
        *("--workdir", tmp_path / "run", "--method", "tise"),
    )
    assert (code, out) == (1, "")
    assert "did you mean ties?" in error
    assert not (tmp_path / "run").exists()


def test_a_run_is_told_and_told_again(command, place, tmp_path):
    for name in ("film", "play"):
        write_task(tmp_path / "tasks" / name)
    arguments = [
        *("cold-fusion", "--data", tmp_path / "tasks", "--workdir", tmp_path / "run"),
        *("--encoder", place / "encoder", "--rounds", "1", "--max-length", "16"),
        *("--set", "baselines=", "--set", "finetune.epochs=1", "--set", "fit.epochs=1"),
    ]
    code, out, error = command(*arguments)
    assert code == 0, error
    assert "ColD Fusion" in out and "plain base, frozen" in out
    assert str(tmp_path / "run" / "report.html") in out
    again, said, _ = command(*arguments, "--json", "--quiet")
    assert again == 0
    assert json.loads(said) == json.loads(
        (tmp_path / "run" / "results.json").read_text()
    )
    code, status, _ = command(
        "repository", "status", tmp_path / "run" / "repository", "--json"
    )
    assert code == 0 and json.loads(status)["round"] == 1


@pytest.mark.parametrize("field", ["round=1", "rounds=many"])
def test_a_mistyped_field_is_wrong_usage(command, field, tmp_path):
    code, out, error = command("cold-fusion", "--data", tmp_path, "--set", field)
    assert (code, out) == (2, "")
    assert "rounds" in error
