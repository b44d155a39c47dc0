"""Statistics of a saved model on a task folder, for a merge without the data."""

import os
import re
import secrets
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax import trees
from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.checkpoints.lazy import open_checkpoint
from fusion_jax.checkpoints.statistics_file import (
    KINDS,
    Layer,
    Manifest,
    stored_gram,
    weights_sha256,
    write_statistics,
)
from fusion_jax.checkpoints.tensor_names import entries_of
from fusion_jax.data import Task, load_task
from fusion_jax.data.batches import bucket_lengths, eval_batches
from fusion_jax.data.tokenise import encode, load_tokenizer
from fusion_jax.merging.gram_forms import block_diagonal, packed, with_noise
from fusion_jax.merging.layer_inputs import Grams
from fusion_jax.models import build_model
from fusion_jax.models.names import TRANSFORMS, Entry
from fusion_jax.systems.saved_model import relabelled
from fusion_jax.training.fisher import ESTIMATORS, collect_fisher
from fusion_jax.training.statistics import collect_grams
from fusion_jax.types import Batch, Model
from fusion_jax.version import __version__


class Written(NamedTuple):
    """What a file of statistics holds.

    Attributes:
      file: where it lies.
      kind: 'gram' or 'fisher'.
      examples: rows that were read.
      layers: linear layers with a Gram; 0 for Fishers.
      inputs: Grams, each once; 0 for Fishers.
      tensors: of the model that have statistics.
      tokens: of the input that saw most; 0 for Fishers.
      num_bytes: of the file.
      cut: Grams that were wide enough for blocks or a rank.
      left_out: leaves with statistics that are no tensor of the model's own files.
    """

    file: Path
    kind: str
    examples: int
    layers: int
    inputs: int
    tensors: int
    tokens: int
    num_bytes: int
    cut: int
    left_out: tuple[str, ...]


def save_statistics(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    kind: str,
    examples: int,
    split: str = "train",
    max_length: int = 128,
    layers: str = ".*",
    outputs: bool = False,
    estimator: str | None = None,
    blocks: int = 0,
    rank: int = 0,
    wider_than: int = 1024,
    noise: float = 0.0,
    seed: int = 0,
    tokens_per_batch: int = 4096,
    every_token: bool = True,
    body: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> Written:
    """Runs a model over rows of its owner's data and writes sums over them.

    Grams are the mean of [x; 1] [x; 1]^T over tokens, one for each distinct input of
    linear layers. Fishers are diagonal, the mean over examples. The file holds no row,
    no token and no label; what sums of few examples give away is another question.

    Args:
      model: with a head for the task's kind; see `huggingface.resolve`.
      data: the task's folder.
      out: file to write, '.safetensors'.
      kind: 'gram' (regmean, mats) or 'fisher'.
      examples: rows drawn without replacement; all where there are fewer.
      split: of the data.
      max_length: tokens of an input.
      layers: regular expression of kernel leaves, for Grams.
      outputs: Grams of the gradients at layers' outputs too, for mats.
      estimator: of `collect_fisher`, for Fishers; None is 'true'.
      blocks: inputs of a block that wide Grams are cut to; 0 does not.
      rank: of a low-rank form of wide Grams; 0 does not.
      wider_than: Grams of more inputs are wide.
      noise: standard deviation of noise on Grams, by the mean of their diagonal. It is
        drawn anew each time and its seed kept nowhere.
      seed: of the draw of rows (and of labels, for estimator='sampled').
      tokens_per_batch: rows times padded length.
      every_token: let the last layer see every token, though the head reads one.
      body: folder of the model without its head, as it was handed in elsewhere: the
        statistics are of its tensors and bear its hash.
      overwrite: replace a file that is there.

    Returns:
      What was written.

    Raises:
      ValueError: options that do not go together, or a pattern that matches no layer.
      FileExistsError: `out` is there and `overwrite` is False.
      CheckpointError, TaskError: the model or the data cannot be used.
      WriteFailed: the disk is full or the folder not writable.
    """
    target = Path(out)
    _check(target, kind, examples, outputs, blocks, rank, noise, overwrite)
    _check_words(kind, layers, estimator)
    task = load_task(data, use_partial=True)
    checkpoint = hf.load(model, kind=task.kind)
    task = _drawn(
        relabelled(task, checkpoint.labels, str(model)), split, examples, seed
    )
    encoded = encode(task, split, load_tokenizer(checkpoint.path), max_length)
    batches = eval_batches(
        encoded,
        tokens_per_batch=tokens_per_batch,
        buckets=bucket_lengths(max_length),
    )
    network = build_model(
        checkpoint.config,
        task.kind,
        max(task.num_labels, 1),
        dtype=jnp.dtype("float32"),
        every_token=every_token,
    )
    folder = open_checkpoint(Path(body) if body else checkpoint.path)
    entries = entries_of(folder, None if body else task.kind)
    manifest = Manifest(
        kind=kind,
        model=_name(model),
        weights_sha256=weights_sha256(folder),
        data=task.name,
        split=split,
        examples=len(task.rows(split)),
        max_length=max_length,
        versions={"fusion_jax": __version__, "jax": jax.__version__},
    )
    if kind == "fisher":
        manifest, arrays, left_out = _fishers(
            manifest,
            network,
            checkpoint.params,
            batches,
            entries,
            task.kind,
            estimator or "true",
            seed,
        )
        held, cut = len(arrays), 0
    else:
        grams = collect_grams(
            network,
            checkpoint.params,
            batches,
            layers=layers,
            outputs=outputs,
            kind=task.kind if outputs else None,
        )
        options = {"every_token": every_token, "layers": layers, "seed": seed}
        options |= {"blocks": blocks, "rank": rank, "wider_than": wider_than}
        manifest, left_out = _described(manifest, grams, entries, outputs)
        manifest = replace(manifest, options={**options, "noise": noise})
        arrays = _grams(manifest, grams, entries)
        held = len(manifest.layers)
        wide = [len(grams.inputs[n]) - 1 > wider_than for n in manifest.counts]
        cut = sum(wide) if blocks or rank else 0
    write_statistics(target, manifest, arrays)
    return Written(
        file=target,
        kind=kind,
        examples=manifest.examples,
        layers=len(manifest.layers),
        inputs=len(manifest.counts),
        tensors=held,
        tokens=int(max(manifest.counts.values(), default=0)),
        num_bytes=target.stat().st_size,
        cut=cut,
        left_out=left_out,
    )


def _check(
    out: Path,
    kind: str,
    examples: int,
    outputs: bool,
    blocks: int,
    rank: int,
    noise: float,
    overwrite: bool,
) -> None:
    faults = []
    if kind not in KINDS:
        faults.append(f"kind {kind!r} is not one of {', '.join(KINDS)}")
    if examples < 1:
        faults.append(f"examples: {examples}; at least 1 is needed")
    if blocks < 0 or rank < 0:
        faults.append(f"blocks {blocks}, rank {rank}: give numbers from 0 on")
    if blocks and rank:
        faults.append("blocks and rank: a Gram is cut to blocks or made low rank")
    if not (np.isfinite(noise) and noise >= 0):
        faults.append(f"noise: {noise} is no number from 0 on")
    if kind == "fisher" and (outputs or blocks or rank or noise):
        faults.append("output gradients, blocks, rank and noise are of kind 'gram'")
    if faults:
        raise ValueError("statistics: " + "; ".join(faults))
    if out.is_dir():
        raise FileExistsError(f"--out: {out} is a folder; name a file")
    if out.exists() and not overwrite:
        raise FileExistsError(
            f"--out: {out} is there already; choose another file, or pass --overwrite"
        )


def _check_words(kind: str, layers: str, estimator: str | None) -> None:
    faults = []
    try:
        re.compile(layers)
    except re.error as error:
        faults.append(f"layers: {layers!r} is no regular expression ({error})")
    if kind == "fisher" and layers != ".*":
        faults.append("layers is of kind 'gram'; Fishers are of every tensor")
    if kind == "gram" and estimator is not None:
        faults.append("estimator is of kind 'fisher'; Grams have none")
    elif estimator not in (None, *ESTIMATORS):
        faults.append(f"estimator {estimator!r} is not one of {', '.join(ESTIMATORS)}")
    if faults:
        raise ValueError("statistics: " + "; ".join(faults))


def _drawn(task: Task, split: str, examples: int, seed: int) -> Task:
    """The task with that many rows of the split, in their order, and no other split."""
    rows = task.rows(split)
    order = np.random.default_rng(seed).permutation(len(rows))
    taken = tuple(rows[i] for i in sorted(order[:examples]))
    return replace(task, splits={split: taken})


def _name(model: str | os.PathLike[str]) -> str:
    """The last part of what the model is called: no path of this machine."""
    folder = Path(model)
    return folder.resolve().name if folder.is_dir() else folder.name


def _described(
    manifest: Manifest, grams: Grams, entries: dict[str, Entry], outputs: bool
) -> tuple[Manifest, tuple[str, ...]]:
    """The manifest with layers and counts; and kernels that have no tensor."""
    layers, left_out = {}, []
    for leaf, read in grams.readers.items():
        entry = entries.get(leaf)
        if entry is None:
            left_out.append(leaf)
            continue
        bias = entries.get(leaf.removesuffix("/kernel") + "/bias")
        layers[entry.source] = Layer(
            input=read,
            bias=None if bias is None else bias.source,
            input_axis=-1 if entry.transform == "transpose" else -2,
        )
    if not layers:
        raise ValueError(
            f"statistics: {', '.join(left_out)}: none is a tensor of the model's files"
        )
    used = {layer.input for layer in layers.values()}
    counts = {name: grams.counts[name] for name in grams.inputs if name in used}
    described = replace(
        manifest,
        layers=layers,
        counts=counts,
        estimator="empirical" if outputs else "",
    )
    return described, tuple(left_out)


def _grams(
    manifest: Manifest, grams: Grams, entries: dict[str, Entry]
) -> dict[str, np.ndarray]:
    options = manifest.options
    arrays: dict[str, np.ndarray] = {}

    def noisy(gram: np.ndarray, *, extended: bool) -> np.ndarray:
        if not options["noise"]:
            return gram
        return with_noise(
            gram, options["noise"], secrets.randbits(63), extended=extended
        )

    for name in manifest.counts:
        gram = noisy(np.asarray(grams.inputs[name]), extended=True)
        wide = len(gram) - 1 > options["wider_than"]
        block, rank = (options["blocks"], options["rank"]) if wide else (0, 0)
        gram = block_diagonal(gram, block) if block else gram
        arrays |= stored_gram(name, gram, block=block, rank=rank)
    for leaf, gram in grams.outputs.items():
        if leaf in entries:
            name = f"outputs/{entries[leaf].source}"
            arrays[name] = packed(noisy(np.asarray(gram), extended=False))
    return arrays


def _fishers(
    manifest: Manifest,
    network: Model,
    params: Any,
    batches: list[Batch],
    entries: dict[str, Entry],
    kind: str,
    estimator: str,
    seed: int,
) -> tuple[Manifest, dict[str, np.ndarray], tuple[str, ...]]:
    """Fishers by the names and in the layout of the model's tensors."""
    tree, count = collect_fisher(
        network,
        params,
        batches,
        kind=kind,
        estimator=estimator,
        key=jax.random.key(seed) if estimator == "sampled" else None,
    )
    arrays, left_out = {}, []
    for leaf, fisher in trees.flatten(tree).items():
        entry = entries.get(leaf)
        if entry is None:
            left_out.append(leaf)
        else:
            arrays[entry.source] = TRANSFORMS[entry.transform](np.asarray(fisher))
    manifest = replace(
        manifest, examples=count, estimator=estimator, options={"seed": seed}
    )
    return manifest, arrays, tuple(left_out)
