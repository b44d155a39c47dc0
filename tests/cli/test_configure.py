import pytest
from ml_collections import ConfigDict

from fusion_jax.cli.configure import read_config, set_fields
from fusion_jax.cli.failures import WrongUsage


@pytest.fixture
def config():
    return ConfigDict(
        {
            "encoder": "",
            "seeds": 1,
            "sources": (),
            "search": {"budget": 100, "race": False, "groups": ()},
            "fit": {"learning_rate": 1e-4, "frozen": ["a"], "schedule": "linear"},
        }
    )


def test_fields_take_the_type_of_what_they_replace(config):
    set_fields(
        config,
        [
            "search.budget=64",
            "search.race=true",
            "fit.learning_rate=1",
            "sources=A+B",
            "encoder=a=b,c",
            "fit.schedule=cosine",
            'fit.frozen=["x.+", "y"]',
            'search.groups=[[".*", 0]]',
            "seeds=-2",
        ],
    )
    assert config.search.budget == 64 and config.search.race is True
    assert config.fit.learning_rate == 1.0
    assert isinstance(config.fit.learning_rate, float)
    assert config.sources == ("A", "B") and config.encoder == "a=b,c"
    assert config.fit.schedule == "cosine" and config.fit.frozen == ["x.+", "y"]
    assert config.search.groups == ([".*", 0],) and config.seeds == -2


def test_mistakes_are_named_all_at_once_and_nothing_is_set(config):
    with pytest.raises(WrongUsage) as refused:
        set_fields(
            config,
            [
                "search.budget=64",
                "search.buget=1",
                "seeds=1.5",
                "search.race=1",
                "seeds",
                "fit=3",
                "fit.learning_rate=fast",
                'sources=["A"',
                "seeds=true",
            ],
        )
    said = str(refused.value)
    assert "'search.buget' is no field of the config; did you mean 'search.bud" in said
    assert "'seeds=1.5': a whole number expected" in said
    assert "'seeds=true': a whole number expected" in said
    assert "'search.race=1': true or false expected" in said
    assert "'fit.learning_rate=fast': a number expected" in said
    assert "'seeds': write FIELD=VALUE" in said
    assert "'fit' is no field" in said
    assert "not a JSON list" in said
    assert config.search.budget == 100


def test_a_config_file_gets_what_follows_its_colon(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config(argument=None):\n"
        "    return ConfigDict({'argument': argument or 'none'})\n"
    )
    assert read_config(str(file)).argument == "none"
    assert read_config(f"{file}:a=b:c").argument == "a=b:c"


def test_what_is_no_config_file_is_named(tmp_path):
    with pytest.raises(WrongUsage, match=r"no file .*absent\.py"):
        read_config(str(tmp_path / "absent.py:smoke"))
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(WrongUsage, match="defines no get_config"):
        read_config(str(tmp_path / "empty.py"))
    (tmp_path / "notes.txt").write_text("no Python")
    with pytest.raises(WrongUsage, match="no Python file"):
        read_config(str(tmp_path / "notes.txt"))
