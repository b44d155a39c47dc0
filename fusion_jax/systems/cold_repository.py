"""The weight repository of a simulated run: its own, or one at a URL."""

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from fusion_jax.collaboration.repository import (
    Repository,
    RepositoryError,
    init_repository,
)
from fusion_jax.collaboration.waiting import waiting_for
from fusion_jax.processes import write_once
from fusion_jax.systems.cold_defaults import fuse_options, limits
from fusion_jax.systems.cold_setting import Setting
from fusion_jax.systems.cold_tasks import Fold, contributors
from fusion_jax.systems.cold_training import expected_runs

Contributors = Callable[[int], Sequence[str]]

# Folders of a run that belong to its rounds.
_OWN = ("repository", "cache", "one_shot", "heads", "fits", "jobs")


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
        check_history(
            setting, repository, folder / "heads", drawn(setting, fold), config.rounds
        )
    except (ValueError, RepositoryError):
        if config.repository or not overwrite:
            raise
        # All that the old run left, heads and the single fuse among it.
        for name in _OWN:
            place = folder / name
            write_once(
                str(place), lambda place=place: shutil.rmtree(place, ignore_errors=True)
            )
        repository = init_repository(url, config.encoder, cache=cache)
    return repository


def drawn(setting: Setting, fold: Fold) -> Contributors:
    """`round -> tasks that contribute in it`."""
    number, seed = setting.config.contributors, setting.seed
    return lambda round_: contributors(fold.seen, number, round_, seed)


def check_history(
    setting: Setting,
    repository: Repository,
    heads: Path,
    names: Contributors,
    rounds: int,
) -> None:
    """Refuses a repository that this run would not have made.

    Args:
      setting: of the run.
      repository: with bases, and contributions that wait.
      heads: folder of the run's heads.
      names: round -> tasks that contribute in it.
      rounds: that the run makes.

    Raises:
      OtherHistory: a base came from other contributions or another fuse, or others
        wait for the next.
    """
    config = setting.config
    operator = {**asdict(fuse_options(config)), "screen": asdict(limits(config))}
    wanted = json.loads(json.dumps(operator))
    for base in repository.history()[1:]:
        parent = repository.base(base.round - 1)
        expected = expected_runs(setting, parent, names(parent.round), heads)
        took = [part.manifest for part in base.parts]
        took += [rejected.manifest for rejected in base.rejected]
        found = _runs(took)
        operator = {name: base.operator.get(name) for name in wanted}
        if base.round > rounds or found != expected or operator != wanted:
            raise OtherHistory(
                f"{repository.url}: base {base.round} was not made by this run "
                "(another config, seed or data, or other contributors); choose "
                "another repository, or start anew with --overwrite where it is the "
                "workdir's"
            )
    base = repository.current()
    waiting = _runs(found.name for found in waiting_for(repository, base))
    if base.round < rounds:
        waiting -= expected_runs(setting, base, names(base.round), heads)
    if waiting:
        told = ", ".join(sorted(who for who, _ in waiting))
        raise OtherHistory(
            f"{repository.url}: contributions wait that are not this run's ({told}), "
            "and would be fused; choose another repository, or start anew with "
            "--overwrite where it is the workdir's"
        )


def _runs(manifests: Iterable[str]) -> set[tuple[str, ...]]:
    """(contributor, run) by the names of manifests."""
    return {tuple(name.split("/")[-3:-1]) for name in manifests}
