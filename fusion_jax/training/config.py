"""What a fit is told: one frozen record, checked when it is made."""

import dataclasses
import re
from typing import Any

SCHEDULES = ("linear", "constant", "cosine")
SELECTIONS = ("metric", "loss", "last")
AVERAGES = ("none", "ema", "swa")
# Options that change what is written and when, but not what comes out.
_SILENT = ("log_every", "save_every", "save_seconds")
DTYPES = ("float32", "bfloat16")

FROZEN_EMBEDDINGS = (r"encoder/embeddings/(word|position|token_type)/embedding",)
"""The tables: half of MiniLM's parameters, a hundredth of its arithmetic."""


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """How to fine-tune one expert, or each expert of a stack.

    Attributes:
      epochs: passes over the training rows with everything but `frozen` trained.
      batch_size: rows a step.
      learning_rate: peak rate.
      warmup_fraction: share of the steps with a rising rate.
      schedule: what follows the warm-up: linear to 0, constant, or cosine to 0.
      weight_decay: decoupled, on leaves of two axes or more.
      clip_norm: largest norm of the gradient; 0 switches clipping off.
      accumulate: slices of a batch whose gradients are summed one after another: the
        same step in a fraction of the memory. Divides batch_size.
      frozen: regular expressions; a leaf whose name matches one in full is not
        trained and has neither gradient nor optimizer state.
      dtype: of the computation. Parameters and optimizer stay float32; the model has
        to be built with the same dtype.
      seed: of dropout and of the order of the rows.
      patience: epochs without a better dev score after which an expert stops; 0 = off.
      select: the epoch whose parameters are returned: best dev metric (ties by lower
        dev loss), lowest dev loss, or the last.
      average: 'swa' takes the running mean of the parameters at the ends of epochs,
        'ema' an exponential one; it is the average that is scored and returned.
      average_decay: weight of the past in 'ema'.
      head_epochs: passes that train 'head/.*' only, before the others.
      head_learning_rate: constant rate of those.
      dropout: whether the model's dropout is on in training.
      buckets: lengths that rows are padded to; empty = the default ones.
      log_every: steps between two lines in metrics.jsonl and looks for NaN.
      save_every: steps between two saves of the train state inside an epoch; 0 = off.
      save_seconds: least time between saves at the ends of epochs, so that short
        epochs do not spend theirs on writing; 0 = at each.
    """

    epochs: int = 5
    batch_size: int = 16
    learning_rate: float = 5e-5
    warmup_fraction: float = 0.1
    schedule: str = "linear"
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    accumulate: int = 1
    frozen: tuple[str, ...] = FROZEN_EMBEDDINGS
    dtype: str = "float32"
    seed: int = 0
    patience: int = 0
    select: str = "metric"
    average: str = "none"
    average_decay: float = 0.5
    head_epochs: int = 0
    head_learning_rate: float = 1e-3
    dropout: bool = False
    buckets: tuple[int, ...] = ()
    log_every: int = 50
    save_every: int = 0
    save_seconds: float = 10.0

    def __post_init__(self) -> None:
        """Raises ValueError with every option that makes no sense."""
        object.__setattr__(self, "frozen", tuple(self.frozen))
        object.__setattr__(self, "buckets", tuple(self.buckets))
        wrong = [
            f"{name} = {getattr(self, name)!r}: choose one of {', '.join(choices)}"
            for name, choices in (
                ("schedule", SCHEDULES),
                ("select", SELECTIONS),
                ("average", AVERAGES),
                ("dtype", DTYPES),
            )
            if getattr(self, name) not in choices
        ]
        for name, least in (
            ("epochs", 0),
            ("batch_size", 1),
            ("weight_decay", 0),
            ("clip_norm", 0),
            ("accumulate", 1),
            ("patience", 0),
            ("head_epochs", 0),
            ("log_every", 1),
            ("save_every", 0),
            ("save_seconds", 0),
        ):
            if getattr(self, name) < least:
                wrong.append(f"{name} = {getattr(self, name)!r}: at least {least}")
        for name in ("learning_rate", "head_learning_rate"):
            if not getattr(self, name) > 0:
                wrong.append(f"{name} = {getattr(self, name)!r}: above 0")
        for name in ("warmup_fraction", "average_decay"):
            if not 0 <= getattr(self, name) < 1:
                wrong.append(f"{name} = {getattr(self, name)!r}: in [0, 1)")
        if self.epochs + self.head_epochs < 1:
            wrong.append("epochs = 0 and head_epochs = 0: train at least one epoch")
        if self.accumulate >= 1 and self.batch_size % self.accumulate:
            wrong.append(
                f"accumulate = {self.accumulate}: must divide batch_size = "
                f"{self.batch_size}"
            )
        for pattern in self.frozen:
            try:
                re.compile(pattern)
            except re.error as error:
                wrong.append(f"frozen: {pattern!r} is no regular expression ({error})")
        if wrong:
            raise ValueError("FitConfig: " + "; ".join(wrong))

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values."""
        record = dataclasses.asdict(self)
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in record.items()
        }

    def decisive(self) -> dict[str, Any]:
        """The options that the outcome depends on, as JSON values."""
        record = self.to_json()
        return {name: record[name] for name in record.keys() - set(_SILENT)}
