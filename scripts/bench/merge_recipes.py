"""The merges that are compared, in the words of each side, and the peers themselves."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
EXPERTS = ("expert_1", "expert_2", "expert_3", "expert_4")
WEIGHT = 0.3
SHARE = 0.25
DENSITY = 0.5
T = 0.4
PEERS = (("torch==2.13.0",), ("mergekit==0.1.5", "fusion-bench==0.2.33"))
"""What --make-peers installs; torch first and alone."""

_DENSE = {"density": DENSITY}
_ELECTED = {"elect": "weighted", "aggregate": "mean"}
_RANDOM = {"density": DENSITY, "rescale": "inverse", "exempt_vectors": False}


class Recipe(NamedTuple):
    """One merge.

    Attributes:
      weight: of every expert, in mergekit's file; None where it takes none.
      per_model: mergekit's other parameters of a model.
      base: label of mergekit's base_model, or None.
      models: labels that are merged.
      ours: our name of the method.
      coefficients: of `models`, effective.
      options: ours, for the same numbers as mergekit.
      random: masks are drawn, so that outputs agree in distribution alone.
      clamped: we keep the base where mergekit leaves the span of the experts.
      fusion_bench: options of FusionBench's command, where it has the method.
    """

    ours: str
    weight: float | None = WEIGHT
    per_model: dict[str, float] = {}  # noqa: RUF012, never changed
    base: str | None = "base"
    models: tuple[str, ...] = EXPERTS
    coefficients: tuple[float, ...] = (WEIGHT,) * 4
    options: dict[str, Any] = {}  # noqa: RUF012
    random: bool = False
    clamped: bool = False
    fusion_bench: tuple[str, ...] = ()


RECIPES: dict[str, Recipe] = {
    "linear": Recipe(
        "weighted_average",
        weight=SHARE,
        base=None,
        coefficients=(SHARE,) * 4,
        fusion_bench=("method=linear/simple_average_for_causallm",),
    ),
    "task_arithmetic": Recipe(
        "task_arithmetic",
        fusion_bench=(
            "method=linear/task_arithmetic_for_causallm",
            f"method.scaling_factor={WEIGHT}",
        ),
    ),
    "slerp": Recipe(
        "slerp",
        weight=None,
        base="expert_1",
        models=EXPERTS[:2],
        coefficients=(1 - T, T),
        fusion_bench=("method=slerp/slerp_lm", f"method.t={T}"),
    ),
    "ties": Recipe(
        "ties",
        per_model=_DENSE,
        options={**_DENSE, **_ELECTED, "trim_scope": "tensor"},
        fusion_bench=(
            "method=linear/ties_merging_for_causallm",
            f"method.threshold={DENSITY * 100:g}",
            f"method.scaling_factor={WEIGHT}",
        ),
    ),
    "dare_ties": Recipe(
        "dare_ties",
        per_model=_DENSE,
        options={**_RANDOM, "elect": "weighted", "aggregate": "sum"},
        random=True,
    ),
    "della": Recipe(
        "della",
        per_model=_DENSE,
        options={**_RANDOM, **_ELECTED, "epsilon": 0.15, "input_axis": -1},
        random=True,
    ),
    "breadcrumbs": Recipe(
        "breadcrumbs",
        per_model=_DENSE,
        options={**_DENSE, "gamma": 0.01, "elect": "none", "aggregate": "sum"},
    ),
    "model_stock": Recipe(
        "model_stock",
        weight=None,
        coefficients=(SHARE,) * 4,
        options={"input_axis": -1},
        # Random experts are orthogonal but for chance: half of their angles are wide.
        clamped=True,
    ),
}

WHOLE = ("--set", "trim_scope=model", "--set", "elect=unweighted")
"""TIES as FusionBench has it: trimmed over the whole vector, votes unweighted, summed;
mergekit's files have no word for it."""


def mergekit_file(method: str, models: Path, file: Path) -> Path:
    """Writes a merge as mergekit's file; JSON is YAML.

    Args:
      method: of `RECIPES`.
      models: folder of base and experts.
      file: to write.

    Returns:
      The file.
    """
    recipe = RECIPES[method]
    parameters = dict(recipe.per_model)
    if recipe.weight is not None:
        parameters["weight"] = recipe.weight
    content: dict[str, Any] = {"merge_method": method, "dtype": "float32"}
    if recipe.base:
        content["base_model"] = str(models / recipe.base)
    content["models"] = [
        {"model": str(models / label)}
        | ({"parameters": parameters} if parameters else {})
        for label in recipe.models
    ]
    if method == "slerp":
        content["parameters"] = {"t": T}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return file


def our_command(*arguments: str | Path) -> list[str | Path]:
    """The command of this checkout, installed or not."""
    return [sys.executable, "-m", "fusion_jax.cli.main", *arguments]


def our_whole_ties(models: Path, out: Path) -> list[str | Path]:
    """TIES with FusionBench's meaning, by our command."""
    return our_command(
        *("merge", "--method", "ties", "--base", models / "base"),
        *("--models", *[models / label for label in EXPERTS]),
        *("--weights", *[str(WEIGHT)] * len(EXPERTS)),
        *("--set", f"density={DENSITY}", *WHOLE, "--set", "aggregate=sum"),
        *("--dtype", "float32", "--out", out),
    )


def mergekit_command(peers: Path, file: Path, out: Path) -> list[str | Path]:
    """The same by mergekit's command."""
    return [peers / "bin" / "mergekit-yaml", file, out, "--quiet", "--random-seed", "0"]


def fusion_bench_command(
    peers: Path, method: str, models: Path, configs: Path, out: Path
) -> list[str | Path]:
    """The same by FusionBench's command; its pool of models goes to `configs`."""
    recipe = RECIPES[method]
    labels = {label: str(models / label) for label in recipe.models}
    if recipe.base == "base":
        labels = {"_pretrained_": str(models / "base"), **labels}
    pool = {
        "_target_": "fusion_bench.modelpool.CausalLMPool",
        "_recursive_": False,
        "enable_lazy_loading": False,
        "models": labels,
        "model_kwargs": {"torch_dtype": "float32"},
        "tokenizer": str(models / "base"),
    }
    file = configs / "modelpool" / f"pool_{method}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(pool, indent=2) + "\n", encoding="utf-8")
    return [
        *(peers / "bin" / "fusion_bench", "--config-dir", configs),
        *(f"modelpool=pool_{method}", "taskpool=dummy", "print_config=false"),
        *("fabric.accelerator=cpu", "fabric.devices=1", f"path.log_dir={out}"),
        *recipe.fusion_bench,
    ]


def mergekit_parameters(method: str) -> dict[str, Any]:
    """The parameters of a merge for mergekit's function, a number a model."""
    recipe = RECIPES[method]
    if method == "slerp":
        return {"t": T}
    single = dict(recipe.per_model)
    if recipe.weight is not None:
        single["weight"] = recipe.weight
    return {name: [value] * len(recipe.models) for name, value in single.items()}


def labels_of(method: str) -> tuple[str, ...]:
    """The models that a merge reads, its base first."""
    recipe = RECIPES[method]
    base = (recipe.base,) if recipe.base else ()
    return tuple(dict.fromkeys([*base, *recipe.models]))


def make_peers(venv: Path) -> None:
    """Makes an environment with the peers, where there is none."""
    if (venv / "bin" / "mergekit-yaml").is_file():
        return
    run([sys.executable, "-m", "venv", venv])
    for packages in PEERS:
        run([venv / "bin" / "python", "-m", "pip", "install", "--quiet", *packages])


def run(command: Sequence[str | Path]) -> None:
    """Runs a command, its words on stderr: stdout is for the record."""
    subprocess.run(command, check=True, stdout=sys.stderr)
