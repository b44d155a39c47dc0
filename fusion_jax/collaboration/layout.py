"""Where everything lies in a weight repository.

model/<sha256>/<file>                        config and tokenizer of all bases
bases/<round>.json                           a base's manifest: creating it promotes it
bases/<round>/<sha256>.safetensors           its weights
bases/<round>/<sha256>.optimizer.safetensors state of a server optimizer
contributions/<round>/<contributor>/<run>/<sha256>.safetensors   weights, written first
contributions/<round>/<contributor>/<run>/<sha256>.statistics.safetensors
contributions/<round>/<contributor>/<run>/manifest.json          ... then the manifest
forks/<name>/...                             a repository made by fusing a round anew
latest.json                                  where to look first, never the truth

<round> of a contribution is that of the base it began from. Rounds are written with six
digits, so that the order of names is the order of rounds.
"""

import re

LATEST = "latest.json"
MANIFEST = "manifest.json"
BASES = "bases/"
CONTRIBUTIONS = "contributions/"
FORKS = "forks/"

_PART = re.compile(r"[A-Za-z0-9_=-][A-Za-z0-9._=-]{0,99}")


def base_manifest(round_: int) -> str:
    """Name of a base's manifest."""
    return f"{BASES}{round_:06d}.json"


def base_folder(round_: int) -> str:
    """Prefix of a base's weights and of what is kept with them."""
    return f"{BASES}{round_:06d}/"


def base_file(round_: int, sha256: str) -> str:
    """Name of a base's weights."""
    return f"{base_folder(round_)}{sha256}.safetensors"


def model_file(name: str, sha256: str) -> str:
    """Name of a companion of all bases: config.json, tokenizer.json, ..."""
    return f"model/{sha256}/{name}"


def contributions(round_: int) -> str:
    """Prefix of everything contributed to the base of a round."""
    return f"{CONTRIBUTIONS}{round_:06d}/"


def contribution_folder(round_: int, contributor: str, run: str) -> str:
    """Prefix of one contribution."""
    return f"{contributions(round_)}{part(contributor)}/{part(run)}/"


def part(name: str) -> str:
    """A name that may stand between two slashes.

    Raises:
      ValueError: it has other characters, or is too long.
    """
    if not _PART.fullmatch(name):
        raise ValueError(
            f"'{name}' cannot be a name in a repository: use 1 to 100 letters, digits "
            "and . _ = -, not a dot first"
        )
    return name
