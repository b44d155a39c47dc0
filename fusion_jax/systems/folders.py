"""Configs for task folders of one's own: what the commands and configs/*/local.py run.

A fine-tune has the recipe of a DFWE expert, so that its score is what DFWE is held
against.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from fusion_jax.config import Config
from fusion_jax.systems.cold_defaults import cold_config
from fusion_jax.systems.defaults import (
    dataless_config,
    dfwe_config,
    finetune_config,
)
from fusion_jax.systems.portability_defaults import portability_config
from fusion_jax.systems.selection_defaults import selection_config


def dfwe_on_folders(data: str | os.PathLike[str]) -> Config:
    """DFWE's config for a folder of task folders; an incomplete train counts."""
    return _on_folders(dfwe_config(), data)


def dataless_on_folders(data: str | os.PathLike[str]) -> Config:
    """Dataless fusion's config for a folder of task folders, one owner each."""
    return _on_folders(dataless_config(), data)


def cold_on_folders(data: str | os.PathLike[str]) -> Config:
    """ColD Fusion's config for a folder of task folders, one contributor each."""
    return _on_folders(cold_config(), data)


def portability_on_folders(data: str | os.PathLike[str]) -> Config:
    """The portability study's config for a folder of task folders; it has no hosts."""
    return _on_folders(portability_config(), data)


def selection_on_folders(data: str | os.PathLike[str]) -> Config:
    """Task selection's config for a folder of task folders of one label set."""
    return _on_folders(selection_config(), data)


def take_names(config: Config, hosts: Sequence[str], techniques: Sequence[str]) -> None:
    """Sets a study's hosts, written as NAME=DIR, and keeps only some techniques.

    Raises:
      ValueError: a host without a name, or a technique that the config has not.
    """
    wrong = []
    for text in hosts:
        name, equals, source = text.partition("=")
        if equals and name and source:
            config.hosts[name] = source
        else:
            wrong.append(f"hosts: '{text}': write NAME=DIR")
    known = list(config.techniques)
    lost = [name for name in techniques if name not in known]
    if lost:
        wrong.append(f"techniques: {', '.join(lost)}; there are {', '.join(known)}")
    if wrong:
        raise ValueError("; ".join(wrong))
    for name in known if techniques else ():
        if name not in techniques:
            del config.techniques[name]


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


def _on_folders(config: Config, data: str | os.PathLike[str]) -> Config:
    config.data.update({"reader": "folders", "path": str(data), "use_partial": True})
    return config
