"""Batches of few fixed shapes; a training batch is a pure function of the step."""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from fusion_jax.data.encoded import Encoded
from fusion_jax.types import Batch

LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)

# What fills the places after a row's own tokens; input_ids take the tokenizer's own.
PADDING = {"tags": -1, "choice_ids": -1}


def bucket_lengths(max_length: int, multiple: int = 1) -> tuple[int, ...]:
    """Padded lengths up to `max_length`, which is the last of them.

    Args:
      max_length: tokens of the longest row.
      multiple: every length is rounded up to a multiple of this.
    """
    if max_length < 1:
        raise ValueError(f"max_length={max_length} must be at least 1")
    lengths = [n for n in LENGTHS if n < max_length] + [max_length]
    return tuple(sorted({-(-n // multiple) * multiple for n in lengths}))


def eval_batches(
    encoded: Encoded,
    *,
    tokens_per_batch: int,
    buckets: Sequence[int],
    num_labels: int | None = None,
) -> list[Batch]:
    """Every row exactly once, in batches of about `tokens_per_batch` tokens.

    Rows are sorted by length and each bucket has one shape. What is left over in a
    bucket joins the next longer one where that costs fewer padding tokens than the
    bucket's own batches, evened, would.

    Args:
      encoded: the split.
      tokens_per_batch: rows times padded length; at least one row a batch.
      buckets: ascending padded lengths (`bucket_lengths`).
      num_labels: C of the batches, if larger than the task's.

    Returns:
      Batches of numpy arrays; 'index' says which rows, -1 is padding.
    """
    lengths = _padded_lengths(encoded, buckets)
    order = np.lexsort((np.arange(len(encoded)), encoded.lengths))
    pending: list[int] = []
    batches = []
    used = sorted(set(lengths.tolist()))
    for bucket, following in zip(used, [*used[1:], None], strict=True):
        pending += [int(i) for i in order if lengths[i] == bucket]
        size = max(1, tokens_per_batch // bucket)
        # A small split fills no batch; up to a multiple of 8 is enough then.
        size = min(size, -(-len(encoded) // 8) * 8)
        rest = 0 if following is None else len(pending) % size
        if following is not None and rest:
            count = -(-len(pending) // size)
            padding = count * _even_size(len(pending), size) - len(pending)
            if rest * (following - bucket) >= padding * bucket:
                rest = 0
        whole, pending = pending[: len(pending) - rest], pending[len(pending) - rest :]
        size = _even_size(len(whole), size)
        batches += [
            make_batch(encoded, whole[i : i + size], size, bucket, num_labels)
            for i in range(0, len(whole), size)
        ]
    return batches


def _even_size(rows: int, size: int) -> int:
    """Rows of a batch: `size`, or fewer where whole batches of it were padding.

    Few shapes are worth a tenth of padding, not more.
    """
    count = -(-rows // size)
    if count <= 1 or count * size - rows <= rows / 10:
        return size
    even = -(-rows // count)
    # A multiple of 8 can be spread over devices; it is taken where it costs as little.
    round_size = -(-even // 8) * 8
    return round_size if count * round_size - rows <= rows / 10 else even


class TrainBatches:
    """Shuffled batches without end; `batch(step)` depends on nothing but the step.

    Each epoch has its own permutation of the rows that hold a target. Rows of similar
    length share a batch: the permutation is sorted by length within blocks of 16
    batches, and the batches are shuffled again. The last batch of an epoch, if short,
    is filled with rows whose mask is 0.

    Attributes:
      steps_per_epoch: batches that show every row once.
      batch_size: rows of a batch, padding included.
    """

    def __init__(
        self,
        encoded: Encoded,
        batch_size: int,
        *,
        seed: int,
        buckets: Sequence[int],
        num_labels: int | None = None,
    ):
        """Raises `ValueError` if no row holds a target or the sizes do not fit."""
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        self._rows = encoded.trainable
        if not len(self._rows):
            raise ValueError(
                f"{encoded.task_name}: no row has a target inside its window; raise "
                "max_length or check the answers' offsets"
            )
        self._encoded = encoded
        self._padded = _padded_lengths(encoded, buckets)
        self._seed = seed
        self._num_labels = num_labels
        self.batch_size = batch_size
        self.steps_per_epoch = -(-len(self._rows) // batch_size)
        # An epoch's order costs a sort; the current and the next are kept.
        self._order = lru_cache(maxsize=2)(self._make_order)

    def batch(self, step: int) -> Batch:
        """The batch of a step: numpy arrays [batch_size, ...]."""
        epoch, position = divmod(int(step), self.steps_per_epoch)
        rows = self._order(epoch)[position]
        length = int(self._padded[rows].max())
        return make_batch(
            self._encoded, rows, self.batch_size, length, self._num_labels
        )

    def _make_order(self, epoch: int) -> list[np.ndarray]:
        generator = np.random.Generator(np.random.PCG64([self._seed, epoch]))
        rows = generator.permutation(self._rows)
        block = 16 * self.batch_size
        batches = []
        for start in range(0, len(rows), block):
            part = rows[start : start + block]
            part = part[np.argsort(self._padded[part], kind="stable")]
            batches += [
                part[i : i + self.batch_size]
                for i in range(0, len(part), self.batch_size)
            ]
        return [batches[i] for i in generator.permutation(len(batches))]


class StackedBatches:
    """Batches of K tasks side by side: arrays [K, B, ...] for a stack of experts.

    Attributes:
      steps_per_epoch: the longest member's; shorter members go on into their own next
        epochs.
      batch_size: rows of each member's batch.
    """

    def __init__(self, members: Sequence[TrainBatches]):
        """Raises `ValueError` unless the members have one batch size."""
        sizes = {member.batch_size for member in members}
        if len(sizes) != 1:
            raise ValueError(
                f"stacked batches need members of one batch size, not {sorted(sizes)}"
            )
        self._members = tuple(members)
        self.batch_size = sizes.pop()
        self.steps_per_epoch = max(member.steps_per_epoch for member in members)

    def batch(self, step: int) -> Batch:
        """The batch of a step: numpy arrays [K, batch_size, ...]."""
        return stack_batches([member.batch(step) for member in self._members])


def stack_batches(batches: Sequence[Batch]) -> Batch:
    """K batches of one kind as one: [K, B, ...], padded to the longest of them.

    Raises:
      ValueError: keys, batch sizes or label counts differ.
    """
    longest = max(batch["input_ids"].shape[1] for batch in batches)
    wide = [_widen(batch, longest) for batch in batches]
    shapes = [{name: array.shape for name, array in batch.items()} for batch in wide]
    different = sorted(
        {
            name
            for s in shapes
            for name in {*shapes[0], *s}
            if s.get(name) != shapes[0].get(name)
        }
    )
    if different:
        raise ValueError(
            f"batches differ in {', '.join(different)}; stack tasks of one kind, with "
            "one batch_size and num_labels= the largest label count"
        )
    return {name: np.stack([batch[name] for batch in wide]) for name in wide[0]}


def make_batch(
    encoded: Encoded,
    rows: Sequence[int] | np.ndarray,
    size: int,
    length: int,
    num_labels: int | None = None,
) -> Batch:
    """Rows of a split as arrays [size, length], filled up with rows of mask 0.

    Raises:
      ValueError: `num_labels` is smaller than the task's.
    """
    rows = np.asarray(rows, np.int32)
    classes = encoded.num_labels if num_labels is None else num_labels
    if classes < encoded.num_labels:
        raise ValueError(
            f"{encoded.task_name} has {encoded.num_labels} labels; num_labels={classes}"
            " is too few"
        )
    index = np.full(size, -1, np.int32)
    index[: len(rows)] = rows
    batch: dict[str, np.ndarray] = {
        "index": index,
        "mask": (index >= 0).astype(np.float32),
        "attention_mask": np.zeros((size, length), np.int32),
    }
    lengths = encoded.lengths[rows]
    batch["attention_mask"][: len(rows)] = np.arange(length) < lengths[:, None]
    # A padding row attends to one token, so that no softmax runs over nothing.
    batch["attention_mask"][len(rows) :, 0] = 1
    padding = {**PADDING, "input_ids": encoded.pad_token_id}
    for name, arrays in encoded.columns.items():
        filled = np.full((size, length), padding.get(name, 0), np.int32)
        for place, row in enumerate(rows):
            filled[place, : lengths[place]] = arrays[row]
        batch[name] = filled
    if encoded.features:
        batch["features"] = _features(encoded, rows, size, length)
    for name, values in encoded.targets.items():
        shape = (size, classes) if values.ndim == 2 else (size,)
        filled = np.full(shape, -1 if name in ("start", "end") else 0, values.dtype)
        filled[(slice(len(rows)), *map(slice, values.shape[1:]))] = values[rows]
        batch[name] = filled
    if encoded.kind != "span":
        batch["label_mask"] = (np.arange(classes) < encoded.num_labels).astype(
            np.float32
        )
    return batch


def _features(encoded: Encoded, rows: np.ndarray, size: int, length: int) -> np.ndarray:
    """Hidden states of rows, [size, 1, D] or [size, length, D]; zeros are padding."""
    first = encoded.features[0]
    tokens = 1 if first.ndim == 1 else length
    filled = np.zeros((size, tokens, first.shape[-1]), first.dtype)
    for place, row in enumerate(rows):
        states = encoded.features[row].reshape(-1, first.shape[-1])
        filled[place, : len(states)] = states
    return filled


def _padded_lengths(encoded: Encoded, buckets: Sequence[int]) -> np.ndarray:
    ascending = np.asarray(sorted(buckets))
    longest, limit = int(encoded.lengths.max()), int(ascending[-1])
    if longest > limit:
        raise ValueError(
            f"{encoded.task_name}: a row has {longest} tokens but the longest bucket "
            f"is {limit}; encode with max_length={limit} or add a bucket"
        )
    return ascending[np.searchsorted(ascending, encoded.lengths)]


def _widen(batch: Mapping[str, np.ndarray], length: int) -> dict[str, np.ndarray]:
    now = batch["input_ids"].shape[1]
    per_token = {"input_ids", "token_type_ids", "attention_mask", "context_mask",
                 *PADDING}  # fmt: skip
    wide = dict(batch)
    for name in per_token & batch.keys():
        extra = ((0, 0), (0, length - now))
        # Behind the attention mask the ids are never read: 0 does for any tokenizer.
        wide[name] = np.pad(batch[name], extra, constant_values=PADDING.get(name, 0))
    return wide
