"""Imports run upward only, and each heavy library has one home."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "fusion_jax"

# Rooms from the ground up. A room imports itself and what stands before it; rooms of
# one floor do not know each other. '' is the face: fusion_jax/__init__.py.
FLOORS = (
    ("version", "atomic"),
    ("types",),
    ("trees",),
    ("config", "runtime", "processes"),
    ("merging",),
    ("",),
    ("peft",),
    ("models",),
    ("data",),
    ("evaluation",),
    ("checkpoints",),
    ("training",),
    ("search", "transfer", "collaboration", "reports"),
    ("systems",),
    ("cli",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# Library -> the modules that may import it (a room, or one file of a room).
HOMES = {
    "flax": ("models",),
    "optax": ("training", "search.gradient"),
    "orbax": ("checkpoints",),
    "safetensors": ("checkpoints",),
    "transformers": ("data",),
    "datasets": ("data",),
    "yaml": ("checkpoints",),
    "tokenizers": ("data",),
    "evosax": ("search",),
    "ott": (),
    "matplotlib": ("reports",),
    "ray": ("collaboration",),
    "fsspec": ("collaboration",),
    "s3fs": ("collaboration",),
    "gcsfs": ("collaboration",),
    "aiohttp": ("collaboration",),
    "botocore": ("collaboration",),
    "torch": (),
    "tensorflow": (),
}
# Where else in the checkout torch is allowed: it is what the numbers are held against.
TORCH = ("tests/parity/", "scripts/bench/")


def module_name(path: Path) -> str:
    """The name below the package: models/config.py -> 'models.config', face -> ''."""
    parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str, package: str, modules: frozenset[str]):
    """Yields (line, full name) of every import, those inside functions included.

    `from a import b` is an import of the module a.b where there is one, else of a.
    `package` is the dotted package the source stands in, for relative imports.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                parents = package.split(".")
                parents = parents[: len(parents) - node.level + 1]
                module = ".".join([*parents, module]).rstrip(".")
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                yield node.lineno, inner if inner in modules else module


FILES = sorted((ROOT / PACKAGE).rglob("*.py"))
MODULES = frozenset(f"{PACKAGE}.{module_name(path)}".rstrip(".") for path in FILES)


def faults(name: str, source: str, is_package: bool) -> list[str]:
    """What module `name` (below the package) imports against the two tables."""
    room = name.split(".")[0]
    package = f"{PACKAGE}.{name}".rstrip(".")
    if not is_package:
        package = package.rpartition(".")[0]
    found = []
    for line, target in imports(source, package, MODULES):
        top, _, rest = target.partition(".")
        if top == PACKAGE:
            other = rest.split(".")[0]
            if other != room and FLOOR[other] >= FLOOR[room]:
                found.append(f"{name}:{line} imports {target}, which stands above it")
        elif top in HOMES and not any(
            f"{name}.".startswith(f"{home}.") for home in HOMES[top]
        ):
            homes = ", ".join(HOMES[top]) or "outside the package"
            found.append(f"{name}:{line} imports {top}, whose home is {homes}")
    return found


def test_every_room_has_a_floor():
    rooms = {module_name(path).split(".")[0] for path in FILES}
    assert rooms <= set(FLOOR), "add the new room to FLOORS at its place"


def test_imports_run_upward_and_heavy_libraries_stay_at_home():
    found = [
        fault
        for path in FILES
        for fault in faults(
            module_name(path),
            path.read_text(encoding="utf-8"),
            path.name == "__init__.py",
        )
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "name, source, fault",
    [
        ("models.encoder", "from fusion_jax import trees", None),
        ("models.encoder", "import fusion_jax.training.fit", "stands above it"),
        ("models.encoder", "from fusion_jax.training import fit", "stands above it"),
        ("models.encoder", "from ..systems.dfwe import run", "stands above it"),
        ("models.encoder", "from .config import EncoderConfig", None),
        ("models.encoder", "def f():\n  import optax", "whose home is training"),
        ("search.soup", "import optax", "search.gradient"),
        ("search.gradient", "import optax", None),
        ("search.soup", "from fusion_jax.reports import html", "stands above it"),
        ("trees", "from fusion_jax.types import Params", None),
        ("trees", "import fusion_jax", "stands above it"),
        ("types", "from fusion_jax.trees import stack", "stands above it"),
        ("data.folder", "import torch.nn as nn", "outside the package"),
    ],
)
def test_the_check_itself_finds_what_it_should(name, source, fault):
    found = faults(name, source, is_package=False)
    assert [fault in line for line in found] == ([True] if fault else [])


def test_torch_is_used_only_where_numbers_are_compared():
    found = []
    for folder in ("configs", "launch", "scripts", "tests"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            place = path.relative_to(ROOT).as_posix()
            if place.startswith(TORCH):
                continue
            for line, target in imports(path.read_text(), "", frozenset()):
                if target.split(".")[0] == "torch":
                    found.append(f"{place}:{line}")
    assert not found, found


def test_importing_the_package_loads_no_heavy_library_and_no_device():
    code = (
        "import json, sys\n"
        f"import {PACKAGE}\n"
        "from jax._src.xla_bridge import backends_are_initialized\n"
        "print(json.dumps([sorted(sys.modules), backends_are_initialized()]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        check=True,
    )
    loaded, devices = json.loads(done.stdout)
    assert PACKAGE in loaded
    assert not {name.split(".")[0] for name in loaded} & set(HOMES)
    assert not devices, "an import touched the devices"
