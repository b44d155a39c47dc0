"""Texts as vectors: an encoder's hidden states, the mean over a text's tokens.

What was computed is kept on disk under a hash of all that decides it: a task is encoded
once, whatever it is compared with.
"""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax import atomic
from fusion_jax.checkpoints.huggingface import Checkpoint
from fusion_jax.checkpoints.tensors import CheckpointError, read_file, write_file
from fusion_jax.data.batches import bucket_lengths, make_batch
from fusion_jax.data.encoded import Encoded
from fusion_jax.models import build_model
from fusion_jax.types import Batch, Params

Layers = str | int
"""'last', 'all' (the mean over layers), or the number of a layer from 0 on."""

TOKENS_PER_BATCH = 1024
SCHEMA = 1


def text_states(
    inputs: Encoded,
    encoder: Checkpoint,
    *,
    layers: Layers = "last",
    cache: str | os.PathLike[str] | None = None,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> tuple[np.ndarray, bool]:
    """The mean hidden state of each text over its tokens, special ones included.

    z_n = sum_t m_nt h_nt / sum_t m_nt, h of one layer, or the mean over all layers.

    Args:
      inputs: n texts.
      encoder: whose config and parameters are read.
      layers: see `Layers`.
      cache: folder of states that were computed before.
      tokens_per_batch: rows times padded length of a batch.

    Returns:
      ([n, D] float32, whether it was there). Not finite where the encoder's is not;
      such states are not kept.

    Raises:
      ValueError: there is no such layer.
      CheckpointError: the kept file is damaged, or of something else.
    """
    number = _layer(layers, encoder.config.num_layers)
    if cache is None:
        return _computed(inputs, encoder, number, tokens_per_batch), False
    key = state_key(inputs, encoder, layers)
    file = Path(cache) / f"states-{key[:32]}.safetensors"
    if file.is_file():
        return _read(file, key, len(inputs)), True
    states = _computed(inputs, encoder, number, tokens_per_batch)
    if np.isfinite(states).all():
        _write(file, key, states)
    return states, False


def state_key(inputs: Encoded, encoder: Checkpoint, layers: Layers) -> str:
    """Sha256 of all that decides the states: token ids, encoder, layers."""
    head = {
        "schema": SCHEMA,
        "encoder": encoder.sha256,
        "config": encoder.config.__dict__,
        "layers": _layer(layers, encoder.config.num_layers),
        "lengths": inputs.lengths.tolist(),
    }
    digest = hashlib.sha256(json.dumps(head, sort_keys=True, default=str).encode())
    for name in sorted(inputs.columns):
        digest.update(f"\n{name}\n".encode())
        for row in inputs.columns[name]:
            digest.update(np.ascontiguousarray(row, np.int64).tobytes())
    return digest.hexdigest()


def _layer(layers: Layers, count: int) -> int | None:
    """The number of the layer; None = all."""
    if layers == "all":
        return None
    number = count - 1 if layers == "last" else layers
    if not isinstance(number, int) or not -count <= number < count:
        raise ValueError(
            f"layers: {layers!r}; give 'last', 'all', or a number from 0 to {count - 1}"
        )
    return number % count


def _computed(
    inputs: Encoded, encoder: Checkpoint, layer: int | None, tokens_per_batch: int
) -> np.ndarray:
    program = _program(encoder.config, layer)
    states = np.empty((len(inputs), encoder.config.hidden_size), np.float32)
    for rows, batch in _batches(inputs, tokens_per_batch):
        states[rows] = np.asarray(program(encoder.params, batch))[: len(rows)]
    return states


def _batches(inputs: Encoded, tokens: int) -> list[tuple[np.ndarray, Batch]]:
    """Texts from the longest on, in batches whose shapes are those of every task.

    The batches of `eval_batches` fit one split, and each split would be compiled for.
    """
    buckets: Sequence[int] = bucket_lengths(int(inputs.lengths.max()))
    if buckets[-1] > 16:
        buckets = [*buckets[:-1], -(-buckets[-1] // 16) * 16]
    order = np.argsort(-inputs.lengths, kind="stable")
    found, start = [], 0
    while start < len(order):
        longest = inputs.lengths[order[start]]
        length = next(n for n in buckets if n >= longest)
        size = max(1, tokens // length)
        rows = order[start : start + size]
        whole = make_batch(inputs, rows, size, length)
        read = {"attention_mask", *inputs.columns}
        found.append((rows, {name: x for name, x in whole.items() if name in read}))
        start += size
    return found


@functools.lru_cache(maxsize=16)
def _program(config: Any, layer: int | None) -> Callable[[Params, Batch], jax.Array]:
    """(params, batch) -> [B, D]."""
    model = build_model(config, "single_label", 2, every_token=True)
    stages = model.stages[:-1]
    if layer is not None:
        stages = stages[: layer + 2]

    @jax.jit
    def run(params: Params, batch: Batch) -> jax.Array:
        mask = batch["attention_mask"].astype(jnp.float32)[..., None]
        carry = stages[0].apply(params, None, batch)
        pooled: Any = 0.0
        for stage in stages[1:]:
            carry = stage.apply(params, carry, batch)
            if layer is None or stage is stages[-1]:
                total = jnp.sum(carry.astype(jnp.float32) * mask, axis=1)
                pooled = pooled + total / jnp.sum(mask, axis=1)
        return pooled / (len(stages) - 1 if layer is None else 1)

    return run


def _write(file: Path, key: str, states: np.ndarray) -> None:
    with atomic.file(file) as staging:
        write_file(staging, {"states": states, **_marks(key, states)})


def _read(file: Path, key: str, count: int) -> np.ndarray:
    held = read_file(file)
    remedy = "remove it, it is computed anew"
    if held.keys() != {"states", "key", "content"} or held["states"].ndim != 2:
        raise CheckpointError(f"{file}: no file of text states; {remedy}")
    states = held["states"]
    marks = _marks(key, states)
    if not np.array_equal(held["key"], marks["key"]):
        raise CheckpointError(f"{file}: states of other texts or layers; {remedy}")
    if len(states) != count or not np.array_equal(held["content"], marks["content"]):
        raise CheckpointError(f"{file}: the states are damaged; {remedy}")
    return states


def _marks(key: str, states: np.ndarray) -> dict[str, np.ndarray]:
    content = hashlib.sha256(np.ascontiguousarray(states).tobytes()).digest()
    return {
        "key": np.frombuffer(bytes.fromhex(key), np.uint8),
        "content": np.frombuffer(content, np.uint8),
    }
