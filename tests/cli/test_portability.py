import argparse

import pytest

from fusion_jax.cli import portability
from fusion_jax.cli.runs import make_config
from fusion_jax.systems.folders import portability_on_folders, take_names


def config_of(*arguments):
    parser = argparse.ArgumentParser()
    portability.add_arguments(parser)
    options = parser.parse_args(list(arguments))
    config = make_config(options, portability_on_folders, portability.FIELDS)
    take_names(config, options.hosts or (), options.techniques or ())
    return config


def test_every_option_reaches_its_field():
    config = config_of(
        *("--data", "tasks", "--tasks", "A+B", "--hosts", "one=/m/a+two=package:p/q"),
        *("--pairs", "one:two", "--combinations", "A:B+A:A", "--techniques", "lora"),
        *("--inits", "ported+scratch", "--steps", "0+5", "--head", "fresh"),
        *("--modules", "lora:one:A:0=M", "--strict-host", "--seeds", "2"),
        *("--seed", "3", "--shots", "64", "--set", "port.width=ridge"),
        *("--set", "techniques.lora.peft.rank=4"),
    )
    assert (config.data.reader, config.data.path) == ("folders", "tasks")
    assert config.hosts.to_dict() == {"one": "/m/a", "two": "package:p/q"}
    assert (config.tasks, config.pairs) == (("A", "B"), ("one:two",))
    assert config.combinations == ("A:B", "A:A")
    assert list(config.techniques) == ["lora"]
    assert config.techniques.lora.peft.rank == 4
    assert (config.inits, config.steps) == (("ported", "scratch"), (0, 5))
    assert (config.head, config.strict_host) == ("fresh", True)
    assert config.modules == ("lora:one:A:0=M",)
    assert (config.seeds, config.seed, config.shots) == (2, 3, 64)
    assert config.port.width == "ridge"


def test_what_is_not_given_changes_nothing():
    config = config_of("--data", "tasks")
    default = portability_on_folders("tasks")
    assert config.to_json() == default.to_json()
    assert sorted(config.techniques) == ["adapter", "compacter", "lora", "prefix"]


def test_hosts_and_techniques_that_make_no_sense_are_named():
    with pytest.raises(ValueError) as caught:
        config_of("--data", "tasks", "--hosts", "DIR", "--techniques", "lora+magic")
    assert "hosts: 'DIR': write NAME=DIR" in str(caught.value)
    assert "techniques: magic; there are" in str(caught.value)


def test_the_command_says_what_is_wrong_without_a_traceback(command, tmp_path):
    code, out, err = command(
        *("portability", "--data", tmp_path, "--workdir", tmp_path / "run"),
        *("--hosts", "DIR"),
    )
    assert (code, out) == (2, "") and "write NAME=DIR" in err
    code, out, err = command(
        "portability", "--data", tmp_path, "--workdir", tmp_path / "run"
    )
    assert code == 1 and "hosts: none; name at least one" in err
    assert not (tmp_path / "run").exists()
