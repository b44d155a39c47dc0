"""A base as a model folder with a card that tells where it came from."""

import json
import os
from pathlib import Path

from fusion_jax import atomic
from fusion_jax.checkpoints import manifests
from fusion_jax.checkpoints.manifests import BaseManifest
from fusion_jax.checkpoints.model_card import model_card
from fusion_jax.collaboration import layout
from fusion_jax.collaboration.repository import Repository


def export(
    repository: Repository,
    round_: int,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> Path:
    """Writes a base as a Hugging Face folder, its manifest and a model card with it.

    Args:
      repository: with the base.
      round_: of the base.
      out: the folder.
      overwrite: replace a folder that is there.

    Raises:
      FileExistsError: it is there.
      RepositoryError: there is no such base, or its objects are damaged or gone.
    """
    target = Path(out)
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} is there; choose another --out or --overwrite")
    base = repository.base(round_)
    weights = repository.fetch(base.weights)
    with atomic.directory(target) as staging:
        folder = staging / "model"
        repository.write_model(folder, weights)
        for file in sorted(folder.iterdir()):
            file.rename(staging / file.name)
        folder.rmdir()
        atomic.write_text(staging / "README.md", card(repository, base))
        atomic.write_bytes(staging / "fusion_manifest.json", manifests.dump(base))
    return target


def card(repository: Repository, base: BaseManifest) -> str:
    """The model card of a base: parents, contributors, weights, what was left out."""
    data = repository.store.read(layout.base_manifest(base.round))
    rejected = [
        f"- {one.contributor or one.manifest}: {'; '.join(one.reasons)}"
        for one in base.rejected
    ]
    notes = [f"Manifest {manifests.sha256(data)} of {repository.url}."]
    notes += [base.reason] if base.reason else []
    if base.parts:
        notes.append(_how(base))
    notes += list(base.notes)
    if rejected:
        notes.append("Left out by the screen:\n\n" + "\n".join(rejected))
    labels = _labels(base)
    sources = [
        {
            "name": label,
            "task": part.task,
            "sha256": part.sha256,
            "base_round": part.base_round,
            "license": part.licence,
        }
        for label, part in zip(labels, base.parts, strict=True)
    ]
    parent = "none" if base.parent is None else f"{base.parent.sha256}"
    return model_card(
        name=f"base {base.round}",
        method="cold_fusion",
        base=f"base {base.parent.round}, {parent}" if base.parent else parent,
        sources=sources,
        coefficients={
            label: part.weight for label, part in zip(labels, base.parts, strict=True)
        },
        scores={},
        sha256=base.weights.sha256,
        notes="\n\n".join(notes),
    )


def _how(base: BaseManifest) -> str:
    """How the parts were fused, in a line."""
    told = {
        k: v for k, v in base.operator.items() if k != "screen" and v not in ({}, 0)
    }
    words = ", ".join(f"{name} {json.dumps(value)}" for name, value in told.items())
    versions = ", ".join(f"{name} {v}" for name, v in base.versions.items())
    shortened = f" {len(base.clipped)} contributions were shortened." * bool(
        base.clipped
    )
    return f"Fused by {words} ({versions}).{shortened}"


def _labels(base: BaseManifest) -> list[str]:
    """A name for each part: the contributor's, with more where it came twice."""
    names = [part.contributor for part in base.parts]
    return [
        part.contributor
        if names.count(part.contributor) == 1
        else f"{part.contributor} ({part.task}, {part.sha256[:8]})"
        for part in base.parts
    ]
