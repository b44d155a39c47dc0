"""The weight repository of a simulated run: opened only if its rounds are the run's."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from fusion_jax.checkpoints.manifests import ManifestError
from fusion_jax.collaboration.repository import (
    Repository,
    RepositoryError,
    init_repository,
)
from fusion_jax.data.task import report
from fusion_jax.processes import write_once
from fusion_jax.systems.cold_defaults import fuse_options, limits
from fusion_jax.systems.cold_setting import Setting
from fusion_jax.systems.cold_training import expected_runs


class OtherHistory(ValueError):
    """The repository holds rounds that this run would not make."""


def open_simulated(
    setting: Setting,
    place: str | os.PathLike[str],
    base: str | os.PathLike[str],
    drawn: Sequence[Sequence[str]],
    *,
    cache: Path,
    heads: Path,
    replace: bool,
) -> Repository:
    """Makes a repository, or goes on with it if all in it is this run's.

    Args:
      setting: tasks and options.
      place: folder or URL.
      base: the model folder that it begins with.
      drawn: tasks that contribute to each round.
      cache: of downloads.
      heads: where contributors' heads stay.
      replace: remove the folder and begin anew where it holds something else.

    Raises:
      OtherHistory: its rounds are not this run's.
      RepositoryError: its first base is another, or objects are gone.
    """
    try:
        repository = init_repository(place, base, cache=cache)
        _check_history(setting, repository, drawn, heads)
    except (OtherHistory, RepositoryError, ManifestError):
        if not replace:
            raise
        for folder in (Path(place), heads):
            remove_once(folder)
        remove_once(cache)
        repository = init_repository(place, base, cache=cache)
    return repository


def remove_once(folder: Path) -> None:
    """Removes a folder in the first process, while the others wait."""
    write_once(str(folder), lambda: shutil.rmtree(folder, ignore_errors=True))


def _check_history(
    setting: Setting,
    repository: Repository,
    drawn: Sequence[Sequence[str]],
    heads: Path,
) -> None:
    """Raises unless all that is there, waiting or fused, is what this run makes."""
    config = setting.config
    operator = {**asdict(fuse_options(config)), "screen": asdict(limits(config))}
    operator = json.loads(json.dumps(operator))
    faults, last = [], repository.current().round
    if last > len(drawn):
        faults.append(f"it has base {last}, and {len(drawn)} rounds are asked for")
    for base in repository.history()[: len(drawn) + 1]:
        told = {name: base.operator.get(name) for name in operator}
        if base.round and told != operator:
            faults.append(f"base {base.round} was fused or screened by other options")
        if base.round == len(drawn):
            break
        expected = expected_runs(setting, base, drawn[base.round], heads)
        found = {_who(one.name) for one in repository.contributions(base.round)}
        strange = found ^ expected if base.round < last else found - expected
        faults += [
            f"round {base.round}: {contributor}/{run} "
            + ("is missing" if (contributor, run) in expected else "is not of this run")
            for contributor, run in sorted(strange)
        ]
    if faults:
        raise OtherHistory(
            report(f"{repository.url} was filled by another run", faults)
            + "\nIt had another config, seed or data, or contributors of its own: "
            "choose another repository, or start anew with --overwrite where it is "
            "the workdir's."
        )


def _who(manifest: str) -> tuple[str, ...]:
    """(contributor, run) by the name of a manifest."""
    return tuple(manifest.split("/")[-3:-1])
