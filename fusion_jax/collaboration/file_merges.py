"""Contributions fused by any merge of the library, through its merges of files."""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fusion_jax.checkpoints.description import CONFIG
from fusion_jax.checkpoints.direct_plan import LINEAR, averages, direct_plan
from fusion_jax.checkpoints.lazy import open_checkpoint
from fusion_jax.checkpoints.merge import merge
from fusion_jax.checkpoints.plan import MergePlan
from fusion_jax.checkpoints.statistics_file import (
    read_statistics,
    weights_sha256,
    write_statistics,
)
from fusion_jax.checkpoints.tensors import WEIGHTS, CheckpointError
from fusion_jax.collaboration.contributions import Contribution, delta
from fusion_jax.collaboration.fuse_options import FuseOptions, values
from fusion_jax.collaboration.weights_file import Weights, open_weights, pieces, written
from fusion_jax.merging import MERGES


class MergedFile(NamedTuple):
    """What a merge gave.

    Attributes:
      weights: a file in the folder of the merge.
      notes: what it did not do, for people.
    """

    weights: Weights
    notes: tuple[str, ...]


def merged_file(
    base: Weights,
    contributions: Sequence[Contribution],
    options: FuseOptions,
    config: Path | None,
    folder: Path,
) -> MergedFile:
    """Merges contributions by the method of the options.

    A contribution that is late or clipped is first moved to the current base,
    theta + f_c (theta_c - theta_b(c)), and its coefficient is v_c / sum v for
    averages, v_c for methods that add task vectors. The memory is that of the merge:
    for most methods the number of contributions times a piece.

    Args:
      base: the current one.
      contributions: in their order.
      options: method, its options and the seed.
      config: folder with config.json of the model, or None.
      folder: empty, on the disk of the output; it takes as much as the model, and once
        more for each contribution that is moved.

    Raises:
      ValueError: options or a number of contributions that the method cannot have,
        or contributions without the statistics that it reads.
      CheckpointError: models or statistics that cannot be merged.
    """
    base_folder = _as_folder(folder / "base", base.file, config)
    models, statistics = [], []
    for number, contribution in enumerate(contributions):
        place = folder / f"{number:04d}_{contribution.member.sha256[:12]}"
        file, sums = contribution.weights.file, contribution.member.statistics
        if not contribution.plain:
            file = folder / f"{place.name}.safetensors"
            _move(base, contribution, file)
        models.append(_as_folder(place, file, config))
        if options.needs_statistics:
            statistics.append(_statistics(contribution, place, sums))
    plan = _plan(options, models, base_folder, statistics, contributions)
    out = folder / "merged"
    merge(plan, out, seed=options.seed, shard_bytes=sys.maxsize)
    about_base = f"{options.method} does not read --base"
    notes = [note for note in plan.notes if not note.startswith(about_base)]
    notes += _ignored(options, contributions)
    return MergedFile(open_weights(out / WEIGHTS), tuple(notes))


def _plan(
    options: FuseOptions,
    models: Sequence[Path],
    base: Path,
    statistics: Sequence[Path],
    contributions: Sequence[Contribution],
) -> MergePlan:
    votes = np.array([contribution.vote for contribution in contributions])
    weights = None
    if (votes != 1).any():
        # Shares of a mean; task vectors are added whole, and late ones in part.
        weights = votes / votes.sum() if averages(options.method) else votes
    return direct_plan(
        options.method,
        models,
        base=base,
        weights=None if weights is None else weights.tolist(),
        options=values(options.options),
        statistics=statistics or None,
    )


def _ignored(options: FuseOptions, contributions: Sequence[Contribution]) -> list[str]:
    late = sum(contribution.vote != 1 for contribution in contributions)
    name = "weighted_average" if options.method == LINEAR else options.method
    if not late or MERGES[name].weights:
        return []
    return [
        f"{options.method}: reads no weights; {late} late contributions count as "
        "much as the others"
    ]


def _move(base: Weights, contribution: Contribution, file: Path) -> None:
    """Writes theta + f_c (theta_c - theta_b(c)), in the layout of the base."""
    with written(file, base.slots) as out:
        for name, info in base.tensors.items():
            for piece in pieces(info.size):
                if not info.floating:
                    out.write(name, piece.start, base.read(name, piece))
                    continue
                way = contribution.factor * delta(contribution, name, piece)
                out.write_rounded(name, piece.start, base.wide(name, piece) + way)


def _statistics(contribution: Contribution, place: Path, file: Path | None) -> Path:
    """A contribution's statistics, said to be of its moved weights where it was moved.

    They were measured with its own weights; moving them by the way of the base is
    taken not to change them much.
    """
    member = contribution.member
    if file is None:
        raise ValueError(
            f"fuse: {member.file} came without statistics, which the method reads; "
            "leave the contribution out, or fuse by the mean"
        )
    if contribution.plain:
        return file
    held = read_statistics(file)
    # Checked here, as the merge will see the hash of the moved weights.
    own = place.parent / f"{place.name}_own"
    found = weights_sha256(open_checkpoint(_as_folder(own, member.file, None)))
    if held.manifest.weights_sha256 != found:
        raise CheckpointError(
            f"{file}: is of other weights than {member.file} (SHA-256 "
            f"{held.manifest.weights_sha256[:12]}, not {found[:12]}); the contributor "
            "has to measure them again"
        )
    moved = place.parent / f"{place.name}_statistics.safetensors"
    manifest = replace(
        held.manifest, weights_sha256=weights_sha256(open_checkpoint(place))
    )
    arrays = {name: held.arrays.read(name) for name in held.arrays.tensors}
    write_statistics(moved, manifest, arrays)
    return moved


def _as_folder(folder: Path, weights: Path, config: Path | None) -> Path:
    """A model folder of links to a file of weights and to config.json."""
    folder.mkdir()
    (folder / WEIGHTS).symlink_to(weights.resolve())
    if config is not None and (config / CONFIG).is_file():
        shutil.copyfile(config / CONFIG, folder / CONFIG)
    return folder
