"""What a group of a dataless fusion leaves in its folder."""

from pathlib import Path
from typing import Any

from fusion_jax import atomic
from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.checkpoints.model_card import model_card
from fusion_jax.reports.html import write_report
from fusion_jax.systems.dataless_given import Fusion, Variant
from fusion_jax.systems.dataless_setting import Setting
from fusion_jax.types import Params

ANSWER = "regmean"
"""The method whose merge is saved as model/."""


def write_artefacts(
    setting: Setting,
    fusion: Fusion,
    merged: Variant | None,
    results: dict[str, Any],
    folder: Path,
) -> None:
    """Writes model/ and report.html; results.json last: all is there.

    Args:
      setting: of the seed.
      fusion: the owners.
      merged: the merge of `ANSWER`, None where it was not run.
      results: the record.
      folder: of the run.
    """
    if merged is not None and setting.config.save_models:
        _save(setting, fusion, merged, results, folder / "model")
    write_report(results, None, folder / "report.html")
    atomic.write_json(folder / "results.json", results)


def _save(
    setting: Setting,
    fusion: Fusion,
    merged: Variant,
    results: dict[str, Any],
    folder: Path,
) -> None:
    first = fusion.members[0]
    params: Params = merged.encoder
    if merged.head is not None:
        params = {**merged.encoder, "head": merged.head}
    scores, counts = results["methods"][ANSWER], results["layers"][ANSWER]
    card = model_card(
        name=f"{ANSWER}-{results['target']}",
        method=ANSWER,
        base=Path(setting.config.encoder).name,
        sources=[
            {"name": m.name, "sha256": hf.hash_params(m.params)} for m in fusion.members
        ],
        coefficients=results["coefficients"],
        scores={f"{s} ({results['metric']})": scores[s] for s in ("dev", "test")},
        kind=first.problem.kind,
        sha256=hf.hash_params(params),
        notes=f"alpha {merged.chosen['alpha']:g}, chosen on dev; "
        + ", ".join(f"{count} tensors {how}" for how, count in counts.items())
        + ".",
    )
    hf.save(
        folder,
        params,
        setting.encoder.config,
        kind=None if merged.head is None else first.problem.kind,
        labels=() if merged.head is None else first.problem.task.labels,
        tokenizer_from=setting.encoder.path,
        card=card,
    )
