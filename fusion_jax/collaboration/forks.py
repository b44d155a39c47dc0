"""A round made anew without some of its contributions, beside the one that stands."""

import dataclasses
import hashlib
from collections.abc import Sequence

from fusion_jax.checkpoints.manifests import BaseManifest, Part
from fusion_jax.checkpoints.object_files import described
from fusion_jax.collaboration import layout
from fusion_jax.collaboration.fused_base import fuse_contributions
from fusion_jax.collaboration.fusing import FuseOptions
from fusion_jax.collaboration.repository import (
    Found,
    Repository,
    RepositoryError,
    publish_first,
)


def fork(
    repository: Repository,
    round_: int,
    without: Sequence[str],
    *,
    name: str = "",
    reason: str = "",
) -> Repository:
    """Fuses a round again without some contributions, into a repository of its own.

    Nothing is overwritten: the fork lies below forks/, and its base 0 names the base
    whose place it takes. Contributors go on by its URL. Given again, the same fork is
    found.

    Args:
      repository: with the round.
      round_: of the base that is made anew.
      without: contributors, or the first 8 or more digits of weights' SHA-256.
      name: of the fork; default 'round_<N>_without_<...>'.
      reason: why; written into the manifest.

    Returns:
      The fork.

    Raises:
      RepositoryError: the round was not fused, nothing would be left, an object is
        damaged or gone.
      ValueError: `without` names nobody of that round.
    """
    base = repository.base(round_)
    if base.fork_of is not None:
        raise RepositoryError(
            f"{repository.url}: base {round_} is itself a fork; fork the repository "
            "that it came from once more, without both"
        )
    if not base.parts or base.parent is None:
        raise RepositoryError(
            f"{repository.url}: base {round_} was not fused from contributions, so it "
            "cannot be fused again; --round takes 1 and more"
        )
    left = _without(base, without)
    kept = [_found(repository, part) for part in left]
    parent = repository.base(base.parent.round)
    name = name or _name(round_, without)
    target = repository.below(f"{layout.FORKS}{layout.part(name)}")
    options = _options(base)
    with repository.scratch() as place:
        made = fuse_contributions(repository, parent, kept, options, place)
        repository.write_model(place / "model", made.file)
        state = None
        if made.state is not None:
            state = described(made.state, layout.base_folder(0), ".optimizer")
            target.store.upload(made.state, state.name)
        publish_first(
            target,
            place / "model",
            parent=parent.reference,
            fork_of=base.reference,
            parts=made.parts,
            operator=base.operator,
            clipped=made.fused.clipped,
            notes=made.notes,
            optimizer=state,
            memory=made.fused.memory,
            seconds=made.fused.seconds,
            reason=reason or f"base {round_} without {', '.join(sorted(without))}",
        )
    return target


def _without(base: BaseManifest, without: Sequence[str]) -> list[Part]:
    """The parts of a base that are left."""

    def named(word: str, part: Part) -> bool:
        digits = len(word) >= 8 and part.sha256.startswith(word)
        return word == part.contributor or digits

    unknown = [w for w in without if not any(named(w, part) for part in base.parts)]
    if unknown or not without:
        there = ", ".join(sorted({part.contributor for part in base.parts}))
        raise ValueError(
            f"base {base.round} has no contribution of {', '.join(unknown) or 'nobody'}"
            f"; it has some of {there}"
        )
    left = [p for p in base.parts if not any(named(word, p) for word in without)]
    if not left:
        raise RepositoryError(
            f"base {base.round} without {', '.join(without)}: no contribution is left; "
            f"go back to base {base.round - 1} instead"
        )
    return left


def _name(round_: int, without: Sequence[str]) -> str:
    """By who is left out; by a hash of them where there are too many to name."""
    words = "_".join([f"round_{round_}_without", *sorted(without)])
    if len(words) <= 100:
        return words
    digest = hashlib.sha256("/".join(sorted(without)).encode()).hexdigest()[:16]
    return f"round_{round_}_without_{len(without)}_{digest}"


def _options(base: BaseManifest) -> FuseOptions:
    """How a base was fused, by its manifest."""
    known = {field.name for field in dataclasses.fields(FuseOptions)}
    return FuseOptions(**{k: v for k, v in base.operator.items() if k in known})


def _found(repository: Repository, part: Part) -> Found:
    """A part's contribution, which must be the very one that was fused."""
    found = repository.contribution(part.manifest)
    if found.manifest is None or found.sha256 != part.manifest_sha256:
        raise RepositoryError(
            f"{repository.url}/{part.manifest}: is not the manifest that was fused "
            f"({found.fault or 'another SHA-256'}); restore it from a copy"
        )
    return found
