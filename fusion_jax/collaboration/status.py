"""How a repository stands: rounds, contributors, verdicts, what is waiting."""

from typing import Any

from fusion_jax.checkpoints.manifests import BaseManifest
from fusion_jax.collaboration import layout
from fusion_jax.collaboration.fused_base import numbers
from fusion_jax.collaboration.repository import Found, Repository
from fusion_jax.collaboration.waiting import waiting_for


def status(repository: Repository) -> dict[str, Any]:
    """Everything that manifests say, as plain values.

    Returns:
      'url'; 'round' of the newest base; 'bases', one record each with 'round',
      'sha256', 'bytes', 'created', 'method', 'operator', 'parts', 'rejected', 'notes',
      'memory', 'seconds', 'reason'; 'waiting', contributions that no base has taken or
      rejected; 'forks', names.

    Raises:
      RepositoryError, ManifestError: a base's manifest is gone or damaged.
    """
    history = repository.history()
    waiting = waiting_for(repository, history[-1])
    forks = {
        name.removeprefix(layout.FORKS).split("/")[0]
        for name in repository.store.list(layout.FORKS)
    }
    return {
        "url": repository.url,
        "round": history[-1].round,
        "bases": [_base(base) for base in history],
        "waiting": [_waiting(found) for found in waiting],
        "forks": sorted(forks),
    }


def _base(base: BaseManifest) -> dict[str, Any]:
    parent = 0 if base.parent is None else base.parent.round
    parts = [
        {
            "contributor": part.contributor,
            "task": part.task,
            "sha256": part.sha256,
            "rounds_late": parent - part.base_round,
            "weight": part.weight,
            "clipped": base.clipped.get(part.sha256),
            "scores": dict(part.scores),
        }
        for part in base.parts
    ]
    return {
        "round": base.round,
        "sha256": base.weights.sha256,
        "bytes": base.weights.bytes,
        "created": base.created,
        "method": base.operator.get("method"),
        "operator": dict(base.operator),
        "parts": parts,
        "rejected": [
            {
                "contributor": rejected.contributor,
                "manifest": rejected.manifest,
                "reasons": list(rejected.reasons),
            }
            for rejected in base.rejected
        ],
        "notes": list(base.notes),
        "memory": dict(base.memory),
        "seconds": dict(base.seconds),
        "reason": base.reason,
    }


def _waiting(found: Found) -> dict[str, Any]:
    manifest = found.manifest
    if manifest is None:
        return {"manifest": found.name, "fault": found.fault}
    return {
        "manifest": found.name,
        "contributor": manifest.contributor,
        "task": manifest.task,
        "base_round": manifest.base.round,
        "rows": manifest.rows,
        "created": manifest.created,
        "scores": numbers(manifest.scores),
        "fault": "",
    }
