"""Contributions of somebody who breaks the rules, beside the honest work of others.

An attack is a function of what the attacker can have: the newest base, the first one,
the own honest fine-tune and another's contribution.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file, save_file

from fusion_jax.checkpoints import manifests
from fusion_jax.checkpoints.manifests import ContributionManifest, TensorFile
from fusion_jax.checkpoints.object_files import DTYPE_NAMES, file_sha256
from fusion_jax.collaboration import layout, marks
from fusion_jax.collaboration.repository import Found, Repository

RUN = "attack"
Tensors = Mapping[str, np.ndarray]

# What the pickle module writes of a dict; nobody opens it.
PICKLE = b"\x80\x04}\x94."


class Scene(NamedTuple):
    """What an attacker can have.

    Attributes:
      base: of the round.
      first: of round 0.
      own: the attacker's honest fine-tune of the base.
      other: what another handed in.
    """

    base: Tensors
    first: Tensors
    own: Tensors
    other: Tensors


@dataclass(frozen=True)
class Attack:
    """One way to harm a round.

    Attributes:
      told: what it is, for a table.
      make: scene -> tensors; None for a file that is no safetensors file.
      suffix: of the object's name.
      base_round: that the manifest declares; None = the newest.
    """

    told: str
    make: Callable[[Scene], Tensors] | None
    suffix: str = ".safetensors"
    base_round: int | None = None


def scaled(factor: float, *, start: str = "base") -> Callable[[Scene], Tensors]:
    """Start + factor (own - base), of floating tensors."""

    def make(scene: Scene) -> Tensors:
        begun = getattr(scene, start)
        return {
            name: values
            if values.dtype.kind != "f"
            else begun[name] + np.float32(factor) * (scene.own[name] - values)
            for name, values in scene.base.items()
        }

    return make


def with_nan(scene: Scene) -> Tensors:
    """The honest work with one entry of its largest tensor broken."""
    found = {name: values.copy() for name, values in scene.own.items()}
    largest = max(found, key=lambda name: found[name].size)
    found[largest].flat[found[largest].size // 2] = np.nan
    return found


def cut_off(scene: Scene) -> Tensors:
    """The honest work without the last row of its largest tensor."""
    found = dict(scene.own)
    largest = max(found, key=lambda name: found[name].size)
    found[largest] = found[largest][:-1]
    return found


def noise(scene: Scene) -> Tensors:
    """Normal numbers of each tensor's own mean and spread."""
    random = np.random.default_rng(0)
    return {
        name: values
        if values.dtype.kind != "f"
        else (
            values.mean() + values.std() * random.standard_normal(values.shape)
        ).astype(values.dtype)
        for name, values in scene.base.items()
    }


ATTACKS: Mapping[str, Attack] = {
    "honest": Attack("no attack: a seventh honest task", lambda scene: scene.own),
    "flipped": Attack("sign flipped: base - delta", scaled(-1)),
    "10x": Attack("delta times 10", scaled(10)),
    "100x": Attack("delta times 100", scaled(100)),
    "random": Attack("random weights", noise),
    "3x": Attack("delta times 3", scaled(3)),
    "stale_denied": Attack(
        "of base 0, said to be of the newest", scaled(1, start="first")
    ),
    "duplicate": Attack("another's weights once more", lambda scene: scene.other),
    "zero": Attack("zero delta: the base", lambda scene: scene.base),
    "flipped_10x": Attack("sign flipped, times 10", scaled(-10)),
    "stale": Attack(
        "of base 0, four rounds old", scaled(1, start="first"), base_round=0
    ),
    "nan": Attack("one NaN in 22 M", with_nan),
    "shape": Attack("a tensor of another shape", cut_off),
    "pickle": Attack("a pickle", None, ".bin"),
    "disguised": Attack("a pickle named .safetensors", None),
}
"""Name -> attack, the most telling first."""


def hand_in(
    repository: Repository, name: str, scene: Scene, folder: Path
) -> tuple[Found, Path]:
    """Writes an attack's file and its manifest, as no honest command would.

    Args:
      repository: where the honest contributions wait.
      name: of `ATTACKS`.
      scene: what the attacker can have.
      folder: where the file stays, as NAME.safetensors or whatever it claims to be.

    Returns:
      The contribution as a fuser finds it, and the file.
    """
    attack, current = ATTACKS[name], repository.current()
    base = current
    if attack.base_round is not None:
        base = repository.base(attack.base_round)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}{attack.suffix}"
    table: dict[str, Any] = dict(current.weights.tensors)
    if attack.make is None:
        file.write_bytes(PICKLE)
    else:
        tensors = attack.make(scene)
        save_file(dict(tensors), file, metadata={"format": "pt"})
        table = {
            key: [DTYPE_NAMES[values.dtype], list(values.shape)]
            for key, values in tensors.items()
        }
    digest, who = file_sha256(file), f"mallory-{name}"
    place = layout.contribution_folder(base.round, who, RUN)
    weights = TensorFile(
        f"{place}{digest}{attack.suffix}", digest, file.stat().st_size, table
    )
    manifest = ContributionManifest(
        contributor=who,
        run=RUN,
        base=base.reference,
        weights=weights,
        task=name,
        data_sha256="0" * 64,
        rows=1,
        **marks.signature(),
    )
    repository.store.upload(file, weights.name)
    said = f"{place}{layout.MANIFEST}"
    repository.store.put_if_absent(said, manifests.dump(manifest))
    return repository.contribution(said), file


def tensors_of(file: Path) -> Tensors:
    """All tensors of a file."""
    return load_file(file)
