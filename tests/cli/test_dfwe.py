import argparse
import json

import pytest

from fusion_jax.cli import dfwe
from fusion_jax.cli.runs import make_config
from fusion_jax.systems.folders import dfwe_on_folders
from tests.small_models import LABELS, write_model, write_task


def config_of(*arguments):
    parser = argparse.ArgumentParser()
    dfwe.add_arguments(parser)
    options = parser.parse_args(list(arguments))
    return make_config(options, dfwe_on_folders, dfwe.FIELDS)


def test_every_option_reaches_its_field():
    config = config_of(
        "--data",
        "tasks",
        "--target",
        "A",
        "--sources",
        "B+C",
        "--shots",
        "8",
        "--source-shots",
        "16",
        "--encoder",
        "E",
        "--experts",
        "x+y",
        "--seeds",
        "2",
        "--seed",
        "5",
        "--max-length",
        "32",
        "--dtype",
        "bfloat16",
        "--set",
        "search.budget=64",
        "--set",
        "plane=0",
    )
    assert (config.data.reader, config.data.path) == ("folders", "tasks")
    assert (config.targets, config.sources) == (("A",), ("B", "C"))
    assert (config.shots, config.source_shots, config.seeds) == (8, 16, 2)
    assert (config.encoder, config.experts, config.seed) == ("E", ("x", "y"), 5)
    assert (config.max_length, config.dtype) == (32, "bfloat16")
    assert (config.search.budget, config.plane) == (64, 0)


def test_options_not_given_leave_the_config_as_it_is():
    assert config_of("--data", "tasks").to_dict() == dfwe_on_folders("tasks").to_dict()


def test_a_config_file_can_be_changed_by_options(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from fusion_jax.systems.defaults import dfwe_config\n"
        "def get_config(argument=None):\n"
        "    config = dfwe_config()\n"
        "    config.shots = int(argument or 0)\n"
        "    return config\n"
    )
    config = config_of("--config", f"{file}:12", "--target", "A+B")
    assert (config.shots, config.targets) == (12, ("A", "B"))


@pytest.mark.parametrize("field", ["serch.budget=1", "search.budget=many"])
def test_a_mistyped_field_is_wrong_usage(command, field, tmp_path):
    code, out, error = command("dfwe", "--data", tmp_path, "--set", field)
    assert (code, out) == (2, "")
    assert "search.budget" in error


def test_a_folder_that_is_not_there_is_named(command, place, tmp_path):
    code, _, error = command(
        "dfwe",
        "--data",
        tmp_path / "nowhere",
        "--encoder",
        place / "encoder",
        "--workdir",
        tmp_path / "run",
    )
    assert code == 1
    assert "nowhere is no folder" in error


def test_a_finished_run_is_told_again(command, place, tmp_path):
    # Two experts that are there: nothing is trained.
    write_task(tmp_path / "tasks" / "opinion")
    experts = [
        write_model(
            tmp_path / f"expert_{n}", kind="single_label", labels=LABELS, seed=n
        )
        for n in range(2)
    ]
    arguments = (
        "dfwe",
        "--data",
        tmp_path / "tasks",
        "--target",
        "opinion",
        "--encoder",
        place / "encoder",
        "--experts",
        "+".join(map(str, experts)),
        "--workdir",
        tmp_path / "run",
        "--max-length",
        "16",
        "--set",
        "search.budget=8",
        "--set",
        "plane=0",
        "--set",
        "target.head_epochs=0",
        "--set",
        "comparators=",
    )
    code, out, error = command(*arguments)
    assert code == 0, error
    assert "DFWE" in out and "uniform soup" in out
    assert str(tmp_path / "run" / "model") in out
    again, said, _ = command(*arguments, "--json", "--quiet")
    assert again == 0
    assert json.loads(said) == json.loads(
        (tmp_path / "run" / "results.json").read_text()
    )
