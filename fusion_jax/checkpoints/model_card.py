"""The model card (README.md) of a fused model: what it was made from, and how well."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fusion_jax.version import __version__

_PIPELINES = {
    "single_label": "text-classification",
    "multi_label": "text-classification",
    "token": "token-classification",
    "span": "question-answering",
}


def model_card(
    *,
    name: str,
    method: str,
    base: str,
    sources: Sequence[Mapping[str, Any]],
    coefficients: Mapping[str, Any],
    scores: Mapping[str, Any],
    kind: str | None = None,
    license: str | None = None,
    sha256: str | None = None,
    command: str | None = None,
    notes: str = "",
) -> str:
    """Writes a model card with YAML front matter that the Hugging Face hub reads.

    Args:
      name: title of the model.
      method: how the sources were fused ('dfwe', 'uniform_soup', ...).
      base: the pretrained model that all sources come from: hub id or path.
      sources: one mapping for each model that went in: 'name', and any of 'path',
        'sha256', 'task', 'license'; other keys are listed as they are.
      coefficients: source name -> weight, or group -> {source name: weight}.
      scores: metric or split -> score in [0, 1], nested mappings allowed; None is
        what was not measured.
      kind: kind of task of the head.
      license: of the fused model; left out where unknown.
      sha256: hash of the fused parameters.
      command: what to type to make it again.
      notes: free Markdown, put last.

    Returns:
      The card.
    """
    # What was trained on one task is no merge.
    merging = ["model-merging"] if len(sources) > 1 else []
    front: dict[str, Any] = {
        "library_name": "transformers",
        "base_model": base,
        "tags": [*merging, "fusion_jax", method],
    }
    if kind in _PIPELINES:
        front["pipeline_tag"] = _PIPELINES[kind]
    if license:
        front["license"] = license
    header = "\n".join(f"{key}: {_yaml(value)}" for key, value in front.items())
    facts = {"method": method, "base": base, "kind": kind, "sha256": sha256}
    facts["made with"] = f"fusion_jax {__version__}"
    parts = [
        f"---\n{header}\n---",
        f"# {_line(name)}",
        _table(("", ""), [(key, value) for key, value in facts.items() if value]),
        "## Sources",
        _sources(sources),
        "## Weights",
        _weights(coefficients),
        "## Scores",
        _table(("score", "value"), list(_flat(scores))),
    ]
    if command:
        parts += ["## To make it again", f"```bash\n{command.strip()}\n```"]
    if notes:
        parts += ["## Notes", notes.strip()]
    return "\n\n".join(parts) + "\n"


def _yaml(value: Any) -> str:
    # JSON is YAML: quoting by JSON keeps colons, hashes and quotes in names harmless.
    return json.dumps(value, ensure_ascii=False)


def _sources(sources: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for source in sources for key in source))
    rows = [tuple(source.get(key) for key in columns) for source in sources]
    return _table(columns, rows)


def _weights(coefficients: Mapping[str, Any]) -> str:
    grouped = [v for v in coefficients.values() if isinstance(v, Mapping)]
    if not grouped:
        return _table(("source", "weight"), list(coefficients.items()))
    names = list(dict.fromkeys(name for group in grouped for name in group))
    rows = [
        (group, *(weights.get(name) for name in names))
        for group, weights in coefficients.items()
    ]
    return _table(("group", *names), rows)


def _flat(scores: Mapping[str, Any], prefix: str = "") -> Any:
    for key, value in scores.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key} ")
        else:
            yield f"{prefix}{key}", value


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    if not rows:
        return "None."
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(_cell(x) for x in row) + " |" for row in lines)


def _cell(value: Any) -> str:
    if value is None:
        return "not measured"
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_cell(x) for x in value) + "]"
    return _line(str(value)).replace("|", "\\|")


def _line(text: str) -> str:
    return " ".join(text.split())
