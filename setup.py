"""Packaging of fusion_jax: all metadata is here, pyproject.toml holds tool tables."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    """Returns the version as text: importing the package would need jax."""
    text = (ROOT / "fusion_jax" / "version.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, flags=re.MULTILINE)
    if found is None:
        raise RuntimeError('fusion_jax/version.py holds no line __version__ = "..."')
    return found.group(1)


REQUIRED = [
    "absl-py",
    "datasets",
    # 0.3.2 is the first release whose `init` and `ask` take a whole tree.
    "evosax>=0.3.2",
    "flax>=0.12",
    "jax>=0.10",
    "matplotlib",
    "ml_collections",
    "numpy",
    "optax",
    # Version 1.0 moves the top level of the library to its v1 interface.
    "orbax-checkpoint>=0.12,<1.0",
    "pyyaml",
    "safetensors",
    "scikit-learn",
    "scipy",
    "tqdm",
    # Tokenizers and configurations only; version 5 has no Flax models.
    "transformers>=5",
]

EXTRAS = {
    # setuptools builds the wheel that tests/test_packaging.py looks into.
    # moto is the server of S3 that tests/collaboration starts.
    "test": [
        "hypothesis",
        "jinja2",
        "moto[server]>=5.2",
        # What transport between samples is held against: OTT and POT.
        "ott-jax>=0.6",
        "POT",
        "pytest",
        "pytest-xdist",
        "s3fs>=2026.6",
        "setuptools>=77",
    ],
    # One version of each tool, the same as in .pre-commit-config.yaml.
    "dev": ["pre-commit", "pyright==1.1.414", "ruff==0.17.6"],
    "bench": ["POT", "psutil", "torch"],
    # Other versions of peft may write other files than those the tests were held
    # against.
    "parity": ["peft==0.21.2", "torch"],
    "tpu": ["jax[tpu]>=0.10"],
    "cuda13": ["jax[cuda13]>=0.10"],
    "ray": ["ray"],
    # 2026.6 is the first release that bounds the pieces of a download.
    "s3": ["s3fs>=2026.6"],
    "gcs": ["gcsfs"],
}

setup(
    name="fusion_jax",
    version=read_version(),
    description="Weight-space model fusion in JAX: merge fine-tuned models into one.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["fusion_jax", "fusion_jax.*"]),
    # What the package reads at run time beside its modules, and nothing else.
    package_data={"": ["*.json", "*.txt", "*.html", "*.css", "py.typed"]},
    install_requires=REQUIRED,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["fusion-jax = fusion_jax.cli.main:main"]},
    keywords=["jax", "flax", "model merging", "model fusion", "transfer learning"],
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
