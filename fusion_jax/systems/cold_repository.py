"""The weight repository of a simulated run: its own, or one at a URL."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

from fusion_jax.collaboration.repository import Repository, init_repository
from fusion_jax.processes import write_once
from fusion_jax.systems.cold_defaults import fuse_options, limits
from fusion_jax.systems.cold_setting import Setting
from fusion_jax.systems.cold_tasks import Fold, contributors
from fusion_jax.systems.cold_training import expected_runs


class OtherHistory(ValueError):
    """The repository holds rounds that this run would not make."""


def open_own(
    setting: Setting, fold: Fold, part: str, *, overwrite: bool = False
) -> Repository:
    """The run's repository, made or gone on with.

    Args:
      setting: with 'repository' in its config; empty = a folder of the run.
      fold: who may contribute.
      part: folder of this run below that of the whole one, or of the URL.
      overwrite: replace a folder of the run's own that holds other rounds.

    Raises:
      OtherHistory: its rounds are not this run's.
    """
    config, folder = setting.config, setting.folder / part
    own = folder / "repository"
    url = "/".join(x for x in (config.repository.rstrip("/"), part) if x)
    url = url if config.repository else str(own)
    cache = folder / "cache"
    try:
        repository = init_repository(url, config.encoder, cache=cache)
        _check_history(setting, fold, repository, folder / "heads")
    except ValueError:
        if config.repository or not overwrite:
            raise
        write_once(str(own), lambda: shutil.rmtree(own))
        write_once(str(cache), lambda: shutil.rmtree(cache, ignore_errors=True))
        repository = init_repository(url, config.encoder, cache=cache)
    return repository


def _check_history(
    setting: Setting, fold: Fold, repository: Repository, heads: Path
) -> None:
    """Raises unless every base came from the contributions that this run makes."""
    config = setting.config
    operator = {**asdict(fuse_options(config)), "screen": asdict(limits(config))}
    wanted = json.loads(json.dumps(operator))
    for base in repository.history()[1:]:
        parent = repository.base(base.round - 1)
        names = contributors(fold.seen, config.contributors, parent.round, setting.seed)
        expected = expected_runs(setting, parent, names, heads)
        took = [part.manifest for part in base.parts]
        took += [rejected.manifest for rejected in base.rejected]
        found = {tuple(name.split("/")[-3:-1]) for name in took}
        operator = {name: base.operator.get(name) for name in wanted}
        if base.round > config.rounds or found != expected or operator != wanted:
            raise OtherHistory(
                f"{repository.url}: base {base.round} was not made by this run "
                "(another config, seed or data, or other contributors); choose "
                "another repository, or start anew with --overwrite where it is the "
                "workdir's"
            )
