"""What a merged folder holds beside weights: config, tokenizer, card, provenance."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fusion_jax import atomic
from fusion_jax.checkpoints.leaves import COPY
from fusion_jax.checkpoints.merge_report import (
    REPORT,
    counts,
    described,
    methods_of,
    write_report,
)
from fusion_jax.checkpoints.model_card import model_card
from fusion_jax.checkpoints.plan import MergePlan
from fusion_jax.checkpoints.statistics_file import read_statistics

PROVENANCE = "merge.json"
"""Every tensor with its method, sources, coefficients, options and norm."""

_ROWS = 400  # of the card's table of tensors by statistics
_TOKENIZER = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
    "sentencepiece*",
    "chat_template*",
)
_OTHERS = (
    "generation_config.json",
    "preprocessor_config.json",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
)


def write_companions(
    plan: MergePlan,
    folder: Path,
    found: Mapping[str, Any],
    *,
    name: str,
    seed: int | None,
    command: str,
    config_text: str | None = None,
    tokenizer: bool = True,
) -> None:
    """Writes config.json, tokenizer files, merge.json and the card.

    Args:
      plan: of the merge.
      folder: the output, with its weights.
      found: 'hashes' (label -> {file: SHA-256}) and 'norms' (tensor -> L2 norm); of a
        plan with statistics 'report' (tensor -> how it came about), which is written
        beside them.
      name: of the model.
      seed: of random masks; None where the method draws none.
      command: that made it.
      config_text: a recipe, kept word for word as mergekit_config.yml.
      tokenizer: copy the donor's tokenizer.
    """
    donor = plan.models[plan.donor]
    _write_config(plan, donor, folder, found.get("dtypes", {}))
    for pattern in (*(_TOKENIZER if tokenizer else ()), *_OTHERS):
        for file in donor.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)
    if config_text is not None:
        (folder / "mergekit_config.yml").write_text(config_text)
    record = provenance(plan, found, seed=seed, command=command)
    atomic.write_json(folder / PROVENANCE, record)
    if found.get("report"):
        write_report(folder, plan, found["report"])
    (folder / "README.md").write_text(_card(plan, found, name, seed, command))


def provenance(
    plan: MergePlan, found: Mapping[str, Any], *, seed: int | None, command: str
) -> dict[str, Any]:
    """The merge in full, for machines."""
    from fusion_jax.version import __version__

    return {
        "fusion_jax": __version__,
        "command": command,
        "seed": seed,
        "dtype": plan.dtype,
        "out_dtype": plan.out_dtype,
        "notes": list(plan.notes),
        "sources": {
            label: {"name": folder.name, "sha256": dict(found["hashes"][label])}
            for label, folder in plan.models.items()
        },
        **_statistics(plan),
        "tensors": {
            tensor.name: {
                "method": tensor.method,
                "sources": [list(source) for source in tensor.sources],
                "base": list(tensor.base) if tensor.base else None,
                "coefficients": list(tensor.coefficients),
                "options": _plain(tensor.options),
                "norm": _finite(found["norms"].get(tensor.name)),
            }
            for tensor in plan.tensors
        },
    }


def _statistics(plan: MergePlan) -> dict[str, Any]:
    """What went into a merge with statistics beside the models; else nothing."""
    said: dict[str, Any] = {}
    for label, file in plan.statistics.items():
        manifest = read_statistics(file).manifest
        said[label] = {
            "name": file.name,
            "kind": manifest.kind,
            "data": manifest.data,
            "split": manifest.split,
            "examples": manifest.examples,
            "max_length": manifest.max_length,
            "estimator": manifest.estimator,
            "options": _plain(manifest.options),
        }
    return {"statistics": said} if said else {}


def _write_config(
    plan: MergePlan, donor: Path, folder: Path, dtypes: Mapping[str, int]
) -> None:
    file = donor / "config.json"
    if not file.is_file():
        return
    config = json.loads(file.read_text()) | dict(plan.config_changes)
    dtype = plan.out_dtype or plan.dtype
    known = [key for key in ("torch_dtype", "dtype") if key in config]
    if not dtype and known and dtypes:
        # The donor's word is of its own files.
        dtype = max(dtypes, key=lambda name: dtypes[name])
    if dtype:
        # transformers wrote 'torch_dtype' until version 4 and 'dtype' since.
        for key in [k for k in ("torch_dtype", "dtype") if k in config] or ["dtype"]:
            config[key] = dtype
    config.pop("_name_or_path", None)  # a path of somebody's disk
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _card(
    plan: MergePlan,
    found: Mapping[str, Any],
    name: str,
    seed: int | None,
    command: str,
) -> str:
    methods = methods_of(plan)
    ways: dict[tuple[Any, ...], list[str]] = {}
    for tensor in plan.tensors:
        way = (
            tensor.method,
            tuple(source.model for source in tensor.sources),
            tensor.base.model if tensor.base else "",
            tuple(round(c, 6) for c in tensor.coefficients),
            json.dumps(_plain(tensor.options), sort_keys=True),
        )
        ways.setdefault(way, []).append(tensor.name)
    sources = []
    for label, folder in plan.models.items():
        hashes = found["hashes"][label]
        sources.append(
            {
                "name": label,
                "folder": folder.name,
                "sha256": ", ".join(f"{file} {h}" for file, h in hashes.items()),
            }
        )
    lines = ["| method | sources | base | coefficients | options | tensors |"]
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    for (method, models, base, row, options), names in ways.items():
        shown = names[0] if len(names) == 1 else f"{len(names)}, {names[0]} first"
        lines.append(
            f"| {method} | {', '.join(models)} | {base or '-'} | "
            f"{', '.join(f'{c:g}' for c in row) or '-'} | {options} | {shown} |"
        )
        if len(lines) > 60:
            lines.append(f"| ... | | | | | all {len(plan.tensors)} in {PROVENANCE} |")
            break
    notes = ["## Tensors", "", *lines]
    if found.get("report"):
        notes += _how(plan, found["report"])
    if seed is not None:
        notes += ["", f"Random masks are of seed {seed}."]
    if plan.notes:
        notes += ["", *[f"- {note}" for note in plan.notes]]
    base = next((t.base.model for t in plan.tensors if t.base), None)
    first = next((t for t in plan.tensors if t.method != COPY), plan.tensors[0])
    coefficients: Mapping[str, Any] = dict(
        zip((s.model for s in first.sources), first.coefficients, strict=False)
    )
    return model_card(
        name=name,
        method=", ".join(methods) or COPY,
        base=plan.models[base].name if base else plan.models[plan.donor].name,
        sources=sources,
        coefficients=coefficients,
        scores={},
        command=command,
        notes="\n".join(notes),
    )


def _how(plan: MergePlan, report: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Which statistics were read, and how each tensor came about."""
    lines = ["", "## Statistics", ""]
    for label, said in _statistics(plan)["statistics"].items():
        lines.append(
            f"- {label}: {said['kind']} of {said['examples']} examples of "
            f"{said['data']} ({said['split']})"
        )
    total = ", ".join(f"{n} {how}" for how, n in counts(report).items())
    lines += ["", f"{total}.", "", "| tensor | how |", "| --- | --- |"]
    rows = [f"| {name} | {described(entry)} |" for name, entry in report.items()]
    if len(rows) > _ROWS:
        rows = [*rows[:_ROWS], f"| ... | all {len(rows)} in {REPORT} |"]
    return [*lines, *rows]


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, tuple | list | np.ndarray):
            return [plain(x) for x in value]
        return value.item() if isinstance(value, np.generic) else value

    return {name: plain(value) for name, value in options.items()}


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None
