"""What is kept of a model's outputs: small arrays a row, computed on the device."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fusion_jax.evaluation.losses import NEVER, loss_of, mask_context, row_weight
from fusion_jax.types import Batch, Outputs, Params

Readout = Mapping[str, Any]
"""Arrays [rows, ...] by name; of a population [P, rows, ...]."""

TEMPERATURES = tuple(float(0.25 * 2 ** (step / 2)) for step in range(9))
"""Log-spaced, 0.25 to 4 with 1 in the middle: the grid of calibrated losses."""

MAX_ANSWER_TOKENS = 30

_FILL = {"logits": NEVER, "tags": -1}


def readout(kind: str, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
    """What scoring needs of a batch's outputs.

    Args:
      kind: kind of the task, a key of `LOSSES`.
      outputs: what `Model.apply` returns.
      batch: the batch, targets included.

    Returns:
      'loss' [B] float32; 'tempered' [B, len(TEMPERATURES)] float32, the loss of
      outputs divided by each temperature; 'weight' [B] float32, what the row weighs
      in a mean of losses; and, by kind, 'logits' [B, C] float32 (padding columns at
      `NEVER`), 'tags' [B, T] int32, or 'span' [B, 2] int32 with 'confidence' [B].

    Raises:
      ValueError: the kind is unknown.
    """
    loss = loss_of(kind)
    logits = outputs["logits"].astype(jnp.float32)
    temperatures = jnp.asarray(TEMPERATURES, jnp.float32)
    tempered = jax.vmap(lambda t: loss({**outputs, "logits": logits / t}, batch))(
        temperatures
    )
    kept = {
        "loss": loss(outputs, batch),
        "tempered": jnp.moveaxis(tempered, 0, -1),
        "weight": row_weight(kind, batch),
    }
    if kind == "span":
        best, confidence = best_span(mask_context(logits, batch))
        return kept | {"span": best, "confidence": confidence}
    mask = batch.get("choice_mask" if kind == "choice" else "label_mask")
    if mask is not None:
        logits = jnp.where(mask > 0, logits, NEVER)
    if kind == "token":
        return kept | {"tags": jnp.argmax(logits, axis=-1).astype(jnp.int32)}
    return kept | {"logits": logits}


def best_span(
    logits: jax.Array, max_tokens: int = MAX_ANSWER_TOKENS
) -> tuple[jax.Array, jax.Array]:
    """The span with the largest sum of start and end logit.

    argmax over s <= e < s + max_tokens of logits[s, 0] + logits[e, 1], found without
    the [T, T] table: a running maximum of the end logits gives s, then e follows.

    Args:
      logits: [B, T, 2] float32, `NEVER` where no answer may be.
      max_tokens: longest answer.

    Returns:
      ([B, 2] int32 of first and last token, [B] float32 sum of their logits).
    """
    start, end = logits[..., 0], logits[..., 1]
    length = start.shape[-1]
    width = min(max_tokens, length)
    window = (1,) * (end.ndim - 1) + (width,)
    padding = [(0, 0)] * (end.ndim - 1) + [(0, width - 1)]
    best_end = lax.reduce_window(
        end, -jnp.inf, lax.max, window, (1,) * end.ndim, padding
    )
    total = start + best_end
    first = jnp.argmax(total, axis=-1)
    position = jnp.arange(length)
    reachable = (position >= first[..., None]) & (position < first[..., None] + width)
    last = jnp.argmax(jnp.where(reachable, end, -jnp.inf), axis=-1)
    best = jnp.stack([first, last], axis=-1).astype(jnp.int32)
    return best, jnp.max(total, axis=-1)


def make_reader(apply: Callable[..., Outputs], kind: str) -> Callable[..., Readout]:
    """The jitted `(params, batch) -> readout` of one model."""

    @jax.jit
    def reader(params: Params, batch: Batch) -> dict[str, jax.Array]:
        return readout(kind, apply(params, batch), batch)

    return reader


def read(
    reader: Callable[..., Readout],
    params: Params,
    batches: Iterable[Batch],
    num_rows: int,
) -> dict[str, np.ndarray]:
    """Runs all batches and returns the readout in the order of the rows: [N, ...]."""
    pieces = [(batch["index"], reader(params, batch)) for batch in batches]
    return collect(pieces, num_rows)


def collect(
    pieces: Iterable[tuple[Any, Readout]], num_rows: int, *, leading: int = 0
) -> dict[str, np.ndarray]:
    """Puts the readouts of batches into the order of the rows.

    Args:
      pieces: (index [B], readout) of each batch; index -1 is a padding row. Batches
        of different token length are padded to the longest.
      num_rows: N.
      leading: axes before that of the rows: 1 for a population's [P, B, ...].

    Returns:
      Arrays [N, ...], or [P, N, ...].

    Raises:
      ValueError: a row is missing; the count and the first are named.
    """
    host = [
        (np.asarray(index), {name: np.asarray(x) for name, x in kept.items()})
        for index, kept in pieces
    ]
    seen = np.zeros(num_rows, bool)
    for index, _ in host:
        seen[index[index >= 0]] = True
    if not seen.all():
        raise ValueError(
            f"{int((~seen).sum())} of {num_rows} rows are in no batch, row "
            f"{int(np.argmin(seen))} first; pass every batch of the split"
        )
    collected = {}
    for name in host[0][1]:
        arrays = [(index, kept[name]) for index, kept in host]
        tail = np.max([x.shape[leading + 1 :] for _, x in arrays], axis=0)
        shape = (*arrays[0][1].shape[:leading], num_rows, *np.array(tail, int))
        whole = np.full(shape, _FILL.get(name, 0), arrays[0][1].dtype)
        before = (slice(None),) * leading
        for index, x in arrays:
            real = index >= 0
            ends = tuple(slice(0, n) for n in x.shape[leading + 1 :])
            whole[(*before, index[real], *ends)] = x[(*before, real)]
        collected[name] = whole
    return collected
