"""Contributions that were accepted become the weights of a base."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fusion_jax.checkpoints.manifests import (
    BaseManifest,
    ContributionManifest,
    Part,
)
from fusion_jax.collaboration.fusing import Fused, FuseOptions, Member, fuse
from fusion_jax.collaboration.repository import Found, Repository


class Made(NamedTuple):
    """A base that is not promoted yet.

    Attributes:
      file: its weights.
      state: of the server optimizer; None without one.
      parts: what went in, in the order of the hashes of weights.
      notes: what was not done, for people.
      fused: weights, memory and seconds.
    """

    file: Path
    state: Path | None
    parts: tuple[Part, ...]
    notes: tuple[str, ...]
    fused: Fused


def fuse_contributions(
    repository: Repository,
    parent: BaseManifest,
    accepted: Sequence[Found],
    options: FuseOptions,
    place: Path,
) -> Made:
    """Fuses contributions onto a base.

    Args:
      repository: where they lie.
      parent: the base that is moved.
      accepted: contributions, each with a manifest; in any order.
      options: how to fuse.
      place: a folder to write into.

    Raises:
      RepositoryError: an object is damaged or gone.
      ValueError: method and options do not fit.
    """
    held = {}
    for found in accepted:
        assert found.manifest is not None, found.name
        held[found.manifest.weights.sha256] = found.name, found.sha256, found.manifest
    members = [
        _member(repository, parent, manifest, options)
        for _, _, manifest in held.values()
    ]
    file, state = place / "fused.safetensors", place / "state.safetensors"
    before, notes = None, ()
    if parent.optimizer is not None:
        if parent.operator.get("optimizer") == options.optimizer:
            before = repository.fetch(parent.optimizer)
        else:
            told = (
                f"the state of {parent.operator.get('optimizer')} ends with this base"
            )
            notes = (told,)
    fused = fuse(
        repository.fetch(parent.weights),
        members,
        options,
        file,
        state=before,
        state_out=state,
        config=repository.base_folder(parent.round),
    )
    parts = []
    for digest in sorted(held):
        name, manifest_sha256, manifest = held[digest]
        parts.append(
            Part(
                manifest=name,
                manifest_sha256=manifest_sha256,
                contributor=manifest.contributor,
                task=manifest.task,
                sha256=digest,
                base_round=manifest.base.round,
                weight=fused.weights[digest],
                licence=manifest.licence,
                scores=numbers(manifest.scores),
            )
        )
    return Made(
        file,
        state if state.is_file() else None,
        tuple(parts),
        (*notes, *fused.notes),
        fused,
    )


def numbers(scores: Mapping[str, Any]) -> dict[str, float]:
    """Those of a contributor's scores that are finite numbers; anybody wrote them."""
    return {
        name: float(score)
        for name, score in scores.items()
        if isinstance(score, (int, float)) and math.isfinite(score)
    }


def _member(
    repository: Repository,
    parent: BaseManifest,
    manifest: ContributionManifest,
    options: FuseOptions,
) -> Member:
    age, statistics = parent.round - manifest.base.round, manifest.statistics
    own_base = repository.base(manifest.base.round).weights
    return Member(
        sha256=manifest.weights.sha256,
        file=repository.fetch(manifest.weights),
        age=age,
        own_base=repository.fetch(own_base) if age else None,
        statistics=repository.fetch(statistics)
        if statistics is not None and options.needs_statistics
        else None,
    )
