"""DFWE with 'auto:k': the k sources whose texts are nearest to the target's."""

import pytest

from fusion_jax.systems import dfwe
from fusion_jax.systems.auto_sources import auto_count
from fusion_jax.systems.defaults import dfwe_config
from tests.small_models import write_model
from tests.systems.selection_tasks import DOMAINS, write_domains


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("auto")
    write_model(root / "encoder")
    write_domains(root / "tasks")
    return root


def setting_of(place, **changes):
    config = dfwe_config()
    config.encoder = str(place / "encoder")
    config.data = {"reader": "folders", "path": str(place / "tasks")}
    config.max_length = 16
    config.comparators = ()
    for stage in (config.source, config.target):
        stage.update({"epochs": 1, "batch_size": 16, "head_epochs": 0})
    config.update(changes)
    return next(dfwe.settings(config, place / "experts"))


def test_the_nearest_sources_are_trained_and_no_others(place):
    setting = setting_of(place, targets=("a1",), sources=("auto:1",))
    assert set(setting.tasks) == set(DOMAINS)
    models, _, _ = dfwe.train_models(setting, dfwe.problem_of(setting, "a1", 0))
    assert set(models) == {"direct", "a2"}
    sources = {file.name.split("-")[0] for file in (place / "experts").glob("*-*")}
    assert sources == {"a1", "a2"}


def test_each_target_has_its_own_nearest(place):
    setting = setting_of(place, sources=("auto:1",))
    for target, near in (("a2", "a1"), ("b1", "b2")):
        problem = dfwe.problem_of(setting, target, 0)
        assert set(dfwe.train_models(setting, problem)[0]) == {"direct", near}


def test_names_are_names():
    assert auto_count(("a", "b")) is None and auto_count(()) is None
    assert auto_count(("auto:12",)) == 12


@pytest.mark.parametrize(
    "sources", [("auto:0",), ("auto:",), ("auto:two",), ("auto:2", "a")]
)
def test_what_is_no_number_of_sources_is_refused(sources):
    with pytest.raises(ValueError, match="write auto:k alone"):
        auto_count(sources)
