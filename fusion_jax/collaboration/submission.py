"""What a contributor hands in: the body of a fine-tuned model, never its head."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fusion_jax import trees
from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.checkpoints import manifests
from fusion_jax.checkpoints.manifests import BaseManifest, ContributionManifest
from fusion_jax.checkpoints.object_files import described
from fusion_jax.checkpoints.tensors import WEIGHTS
from fusion_jax.collaboration import layout, marks
from fusion_jax.collaboration.repository import Repository
from fusion_jax.collaboration.store import Conflict
from fusion_jax.types import Params


def run_id(
    base_sha256: str, data_sha256: str, fit: Mapping[str, Any], seed: int
) -> str:
    """What a contribution is made from, as a name of 16 hex digits.

    A job that is repeated has the same name, so it finds what it handed in already.

    Args:
      base_sha256: of the base's weights.
      data_sha256: of the rows.
      fit: how it is trained, plain values.
      seed: of the training.
    """
    made_from = [base_sha256, data_sha256, dict(fit), seed]
    text = json.dumps(made_from, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def find(
    repository: Repository, base: BaseManifest, contributor: str, run: str
) -> ContributionManifest | None:
    """A contribution that was handed in before; None where there is none.

    Raises:
      ManifestError: it is there and damaged.
    """
    name = _manifest_name(base, contributor, run)
    if repository.store.size(name) is None:
        return None
    data = repository.store.read(name)
    return manifests.load(ContributionManifest, data, f"{repository.url}/{name}")


def submit(
    repository: Repository,
    base: BaseManifest,
    params: Params,
    *,
    contributor: str,
    task: str,
    data_sha256: str,
    rows: int,
    fit: Mapping[str, Any],
    seed: int,
    scores: Mapping[str, Any] | None = None,
    licence: str = "",
    statistics: Callable[[Path, Path], Any] | None = None,
) -> ContributionManifest:
    """Hands in a fine-tuned body; a second time, the first one's manifest comes back.

    The tensors are uploaded under their hash, then the manifest is created: what was
    stopped in between is invisible to everybody.

    Args:
      repository: where to.
      base: that the training began from.
      params: 'encoder' is handed in and nothing else; leaves that the model had not
        (a pooler, say) are the base's.
      contributor: who; letters, digits and . _ = -.
      task: name of the task.
      data_sha256: of the rows, which stay where they are.
      rows: training rows.
      fit: how it was trained, plain values.
      seed: of the training.
      scores: on own dev rows.
      licence: of the data.
      statistics: `(folder of the body, file to write)`, which writes statistics of
        the body for methods that read them; None without.

    Returns:
      The manifest that is in the repository.

    Raises:
      TreeMismatch: the encoder has leaves that the base has not, or other shapes.
      CheckpointError: values that are not finite.
      Conflict: another result is there under the same run; both are named.
    """
    run = run_id(base.weights.sha256, data_sha256, fit, seed)
    folder = layout.contribution_folder(base.round, contributor, run)
    store = repository.store
    sums = None
    with repository.scratch() as place:
        body = _write_body(repository, base, params, place, contributor)
        weights = described(body / WEIGHTS, folder)
        store.upload(body / WEIGHTS, weights.name)
        if statistics is not None:
            statistics(body, place / "statistics.safetensors")
            sums = described(place / "statistics.safetensors", folder, ".statistics")
            store.upload(place / "statistics.safetensors", sums.name)
    manifest = ContributionManifest(
        contributor=contributor,
        run=run,
        base=base.reference,
        weights=weights,
        task=task,
        data_sha256=data_sha256,
        rows=rows,
        config=dict(fit),
        seed=seed,
        licence=licence,
        scores=dict(scores or {}),
        statistics=sums,
        **marks.signature(),
    )
    name = _manifest_name(base, contributor, run)
    if store.put_if_absent(name, manifests.dump(manifest)):
        return manifest
    first = find(repository, base, contributor, run)
    assert first is not None
    if first.weights.sha256 != weights.sha256:
        raise Conflict(
            f"{repository.url}/{name}: '{contributor}' has handed in another result of "
            f"this very job (weights {first.weights.sha256[:16]}..., now "
            f"{weights.sha256[:16]}...): the first one counts. If somebody else uses "
            "that name, choose another --contributor; another machine or version may "
            "round differently, and then nothing is lost"
        )
    return first


def _write_body(
    repository: Repository,
    base: BaseManifest,
    params: Params,
    place: Path,
    contributor: str,
) -> Path:
    """A folder of the base with what was trained in its place."""
    before = hf.load(repository.base_folder(base.round))
    leaves = trees.flatten({"encoder": before.params["encoder"]})
    trained = trees.flatten({"encoder": params["encoder"]})
    faults = [f"{name}: not in the base" for name in trained if name not in leaves]
    faults += [
        f"{name}: {np.shape(x)} here, {np.shape(leaves[name])} in the base"
        for name, x in trained.items()
        if name in leaves and np.shape(x) != np.shape(leaves[name])
    ]
    if faults:
        raise trees.TreeMismatch(
            f"{contributor}'s model does not fit base {base.round} of "
            f"{repository.url}:\n  " + "\n  ".join(faults) + "\nTrain from that base."
        )
    body = {
        name: np.asarray(trained.get(name, leaf)).astype(np.asarray(leaf).dtype)
        for name, leaf in leaves.items()
    }
    return hf.save(place / "body", trees.unflatten(body), before.config, kind=None)


def _manifest_name(base: BaseManifest, contributor: str, run: str) -> str:
    folder = layout.contribution_folder(base.round, contributor, run)
    return f"{folder}{layout.MANIFEST}"
