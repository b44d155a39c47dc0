"""The torch side of scripts/bench/peft.py: one candidate of modules after another."""

import argparse
import importlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from population import repeat

from fusion_jax import trees
from fusion_jax.checkpoints import huggingface as hf


def measure_torch(
    options: argparse.Namespace, setting: dict[str, Any], loop: str, *, padded: bool
) -> dict[str, Any]:
    """Candidates a second of a loop of torch peft.

    Args:
      options: of the benchmark.
      setting: host, modules, candidates, rows.
      loop: 'cat' or 'lorahub'.
      padded: every row to --max-length; else to the longest of its batch.
    """
    import torch  # pyright: ignore[reportMissingImports]

    model = peft_model(options, setting)
    batches = batches_of(options, setting["encoded"], padded=padded)
    weigh = {"cat": concatenated, "lorahub": summed}[loop](model, setting)

    @torch.no_grad()
    def candidate(weights: list[float]) -> Any:
        weigh(weights)
        return torch.cat([model(**batch).logits for batch in batches])

    rows = [list(map(float, row)) for row in setting["candidates"]]
    logits = candidate(rows[0]).numpy()
    rows = rows[: options.torch_candidates]
    seconds = repeat(options, lambda: [candidate(row) for row in rows])
    return {
        "per_second": len(rows) / seconds,
        "threads": torch.get_num_threads(),
        "padded_tokens": sum(batch["input_ids"].numel() for batch in batches),
        "logits": logits,
    }


def peft_model(options: argparse.Namespace, setting: dict[str, Any]) -> Any:
    """The host in torch with all modules as adapters of peft."""
    import torch  # pyright: ignore[reportMissingImports]

    peft = library()
    from transformers import AutoModelForSequenceClassification

    with tempfile.TemporaryDirectory() as folder:
        place = hf.save(
            f"{folder}/host",
            setting["host"],
            setting["config"],
            kind="single_label",
            labels=setting["task"].labels,
        )
        host = AutoModelForSequenceClassification.from_pretrained(place)
    names = list(setting["modules"])
    config = peft.LoraConfig(
        r=options.rank, lora_alpha=2 * options.rank, target_modules=["query", "value"]
    )
    model = peft.get_peft_model(host, config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    layers = {
        f"encoder/layer_{i}/attention/{part}": getattr(layer.attention.self, part)
        for i, layer in enumerate(model.base_model.model.bert.encoder.layer)
        for part in ("query", "value")
    }
    for name, module in setting["modules"].items():
        leaves = trees.flatten(module.params)
        for path, layer in layers.items():
            for ours, theirs in (("a", layer.lora_A), ("b", layer.lora_B)):
                values = np.array(leaves[f"{path}/lora/{ours}"]).T.copy()
                theirs[name].weight.data = torch.from_numpy(values)
    return model.eval()


def library() -> Any:
    """The package peft: this folder, first on the path, has a script of that name."""
    here, kept = Path(__file__).resolve().parent, list(sys.path)
    sys.path = [place for place in kept if Path(place or ".").resolve() != here]
    try:
        return importlib.import_module("peft")
    finally:
        sys.path = kept


def concatenated(model: Any, setting: dict[str, Any]) -> Callable[[list[float]], None]:
    """`add_weighted_adapter`, exact: a new adapter for every candidate."""
    names = list(setting["modules"])

    def weigh(weights: list[float]) -> None:
        if "candidate" in model.peft_config:
            model.delete_adapter("candidate")
        model.add_weighted_adapter(names, weights, "candidate", combination_type="cat")
        model.set_adapter("candidate")

    return weigh


def summed(model: Any, setting: dict[str, Any]) -> Callable[[list[float]], None]:
    """LoraHub's way: weighted sums of the factors, loaded into the first adapter."""
    peft = library()
    names = list(setting["modules"])
    states = [
        {
            key: value.clone()
            for key, value in peft.get_peft_model_state_dict(
                model, adapter_name=name
            ).items()
        }
        for name in names
    ]
    model.set_adapter(names[0])

    def weigh(weights: list[float]) -> None:
        merged = {
            key: sum(w * state[key] for w, state in zip(weights, states, strict=True))
            for key in states[0]
        }
        peft.set_peft_model_state_dict(model, merged, adapter_name=names[0])

    return weigh


def batches_of(
    options: argparse.Namespace, encoded: Any, *, padded: bool
) -> list[dict[str, Any]]:
    """The dev rows in batches of 32."""
    import torch  # pyright: ignore[reportMissingImports]

    batches = []
    for start in range(0, len(encoded), 32):
        rows = range(start, min(start + 32, len(encoded)))
        width = options.max_length if padded else int(encoded.lengths[list(rows)].max())
        ids, types, mask = (np.zeros((len(rows), width), np.int64) for _ in range(3))
        for place, row in enumerate(rows):
            tokens = encoded.columns["input_ids"][row]
            ids[place, : len(tokens)], mask[place, : len(tokens)] = tokens, 1
            types[place, : len(tokens)] = encoded.columns["token_type_ids"][row]
        batches.append(
            {
                "input_ids": torch.tensor(ids),
                "token_type_ids": torch.tensor(types),
                "attention_mask": torch.tensor(mask),
            }
        )
    return batches
