"""Configs for task folders of one's own: what the commands and configs/*/local.py run.

A fine-tune has the recipe of a DFWE expert, so that its score is what DFWE is held
against.
"""

import os
from pathlib import Path

from fusion_jax.config import Config
from fusion_jax.systems.cold_defaults import cold_config
from fusion_jax.systems.defaults import (
    dataless_config,
    dfwe_config,
    finetune_config,
)
from fusion_jax.systems.selection_defaults import selection_config


def dfwe_on_folders(data: str | os.PathLike[str]) -> Config:
    """DFWE's config for a folder of task folders; an incomplete train counts."""
    config: Config = dfwe_config()
    config.data.update({"reader": "folders", "path": str(data), "use_partial": True})
    return config


def dataless_on_folders(data: str | os.PathLike[str]) -> Config:
    """Dataless fusion's config for a folder of task folders, one owner each."""
    config: Config = dataless_config()
    config.data.update({"reader": "folders", "path": str(data), "use_partial": True})
    return config


def cold_on_folders(data: str | os.PathLike[str]) -> Config:
    """ColD Fusion's config for a folder of task folders, one contributor each."""
    config: Config = cold_config()
    config.data.update({"reader": "folders", "path": str(data), "use_partial": True})
    return config


def selection_on_folders(data: str | os.PathLike[str]) -> Config:
    """Task selection's config for a folder of task folders of one label set."""
    config: Config = selection_config()
    config.data.update({"reader": "folders", "path": str(data), "use_partial": True})
    return config


def finetune_on_folder(data: str | os.PathLike[str]) -> Config:
    """The fine-tune's config for one task folder; an incomplete train counts."""
    config: Config = finetune_config()
    config.data.update({"reader": "folders", "use_partial": True})
    if str(data):
        # The folder's name is the task's, which '.' and 'a/..' do not show.
        folder = Path(data).resolve()
        config.data.path = str(folder.parent)
        config.target = folder.name
    return config
