"""What a DFWE run leaves in its folder: model/, history.json, report.html, results."""

from pathlib import Path
from typing import Any

import numpy as np

from fusion_jax import atomic
from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.checkpoints.model_card import model_card
from fusion_jax.checkpoints.module_file import save_module
from fusion_jax.peft import Module
from fusion_jax.reports.html import write_report
from fusion_jax.search.points import Points
from fusion_jax.systems.interpolation import merged_model
from fusion_jax.systems.methods import vertices
from fusion_jax.systems.problem import Problem
from fusion_jax.types import Params

SPLITS = ("dev", "test")


def write_artefacts(
    folder: Path,
    *,
    encoder: str,
    pretrained: hf.Checkpoint,
    problem: Problem,
    points: Points,
    chosen: np.ndarray,
    params: Params,
    module: Module | None = None,
    results: dict[str, Any],
    history: dict[str, Any],
) -> None:
    """Writes model/, history.json, report.html; results.json last: all is there.

    Args:
      folder: of the run.
      encoder: as the config names it.
      pretrained: the encoder, whose config and tokenizer the model keeps.
      problem: the target.
      points: what was interpolated.
      chosen: [G, K] coefficients.
      params: the merged model.
      module: what was merged into the encoder, of a run over modules: module/.
      results: of `outcome.dfwe_results`.
      history: 'evaluations', 'means', 'plane', for the report's pictures.
    """
    mine = results["methods"]["dfwe"]
    card = model_card(
        name=f"dfwe-{problem.task.name}",
        method="dfwe",
        base=Path(encoder).name,
        sources=[
            {"name": name, "sha256": hf.hash_params(merged_model(points, row))}
            for name, row in zip(points.names, vertices(points), strict=True)
        ],
        coefficients=results["coefficients"],
        scores={f"{split} ({results['metric']})": mine[split] for split in SPLITS},
        kind=problem.kind,
        sha256=hf.hash_params(params),
        notes=f"Task {problem.task.name}, {results['rows']['train']} training rows; "
        f"strategy {results['config']['search']['strategy']}, {results['candidates']} "
        "candidates. Intervals and comparators are in report.html.",
    )
    hf.save(
        folder / "model",
        params,
        pretrained.config,
        kind=problem.kind,
        labels=problem.task.labels,
        tokenizer_from=pretrained.path,
        card=card,
    )
    if module is not None:
        save_module(folder / "module", module, card=card)
    atomic.write_json(folder / "history.json", history)
    write_report(results, history, folder / "report.html")
    atomic.write_json(folder / "results.json", results)


def shown(entry: dict[str, Any]) -> dict[str, Any]:
    """An evaluation with one row of coefficients, for plots and JSON."""
    fitness = entry["fitness"]
    return {
        **entry,
        "coefficients": np.mean(entry["coefficients"], axis=0).tolist(),
        "fitness": fitness if np.isfinite(fitness) else None,
    }
