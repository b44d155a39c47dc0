"""The hint of the newest round, and who wrote a manifest and when."""

import importlib.metadata
import json
import platform
import secrets
from datetime import UTC, datetime
from typing import Any

from fusion_jax.collaboration import layout
from fusion_jax.collaboration.store import Store
from fusion_jax.version import __version__

_PACKAGES = ("jax", "flax", "optax", "transformers", "numpy")


def signature() -> dict[str, Any]:
    """Fields 'versions', 'created' and 'writer' of a manifest.

    The time is told to people and decides nothing: clocks of several machines differ.
    The nonce makes any two manifests differ, so that after a reply which leaves open
    whether a write took place, a writer knows its own object again.
    """
    versions = {"fusion_jax": __version__, "python": platform.python_version()}
    versions |= {package: importlib.metadata.version(package) for package in _PACKAGES}
    return {
        "versions": versions,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "writer": secrets.token_hex(8),
    }


def read(store: Store) -> int:
    """The round to look at first; 0 where the hint is absent or unreadable."""
    found = store.read_versioned(layout.LATEST)
    return 0 if found is None else _round(found.data)


def advance(store: Store, round_: int) -> None:
    """Moves the hint forward, never back; nobody waits for it.

    Reading takes one look with a hint and one a round without: a lost race costs
    somebody a few looks and nothing else.
    """
    found = store.read_versioned(layout.LATEST)
    if found is not None and _round(found.data) >= round_:
        return
    data = json.dumps({"round": round_}).encode()
    store.compare_and_set(layout.LATEST, data, None if found is None else found.version)


def _round(data: bytes) -> int:
    try:
        round_ = json.loads(data)["round"]
    except (ValueError, KeyError, TypeError):
        return 0
    return round_ if isinstance(round_, int) and round_ >= 0 else 0
