"""Task selection: which source will help a target, before training on it."""

import json
import logging
import os

from fusion_jax.config import Config
from fusion_jax.systems.selection_setting import prepare
from fusion_jax.systems.workdir import open_workdir
from fusion_jax.systems.zero_shot import zero_shot

logger = logging.getLogger(__name__)


def run(
    config: Config,
    workdir: str | os.PathLike[str] = "runs/task_selection",
    *,
    overwrite: bool = False,
):
    """Runs a config."""
    plain = json.loads(config.to_json())
    folder = open_workdir(workdir, plain, overwrite=overwrite)
    setting = prepare(config, folder)
    return zero_shot(setting, {name: setting.names for name in setting.names})
