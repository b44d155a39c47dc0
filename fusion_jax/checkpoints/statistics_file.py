"""Statistics of one model on its owner's data, as one safetensors file.

What an owner gives away beside the weights: sums over tokens, never a row of data. A
reader maps the file and unpacks one Gram matrix at a time.
"""

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from fusion_jax import atomic
from fusion_jax.checkpoints.lazy import LazyCheckpoint, read_header
from fusion_jax.checkpoints.tensors import CheckpointError
from fusion_jax.merging.gram_forms import low_rank, packed, unpacked

SCHEMA = 1
KINDS = ("gram", "fisher")
_KEY = "fusion_jax_statistics"
_CHUNK = 2**26  # bytes hashed at once


class Layer(NamedTuple):
    """A linear layer by the names of the model's files.

    Attributes:
      input: whose Gram it reads.
      bias: its tensor; None where the layer has none.
      input_axis: -1 in kernels [out, in], -2 in [in, out].
    """

    input: str
    bias: str | None
    input_axis: int


@dataclass(frozen=True)
class Manifest:
    """What a file of statistics says of itself; nothing of the data but its name.

    Attributes:
      kind: 'gram' or 'fisher'.
      model: name of the model's folder.
      weights_sha256: `weights_sha256` of the model.
      data: name of the data.
      split: of the data.
      examples: rows that were read.
      max_length: tokens of an input.
      counts: input -> tokens that its Gram is the mean of.
      layers: kernel tensor -> layer; empty for Fishers.
      estimator: of Fishers and of gradients at outputs.
      options: how Grams were made smaller or noisy, and the seed of the draw.
      versions: package -> version.
    """

    kind: str
    model: str
    weights_sha256: str
    data: str = ""
    split: str = ""
    examples: int = 0
    max_length: int = 0
    counts: Mapping[str, float] = field(default_factory=dict)
    layers: Mapping[str, Layer] = field(default_factory=dict)
    estimator: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LazyStatistics:
    """A file of statistics whose arrays stay on disk until they are asked for.

    Attributes:
      file: where it lies.
      manifest: what it says of itself.
      arrays: its tensors, by header.
    """

    file: Path
    manifest: Manifest
    arrays: LazyCheckpoint = field(repr=False)

    def gram(self, tensor: str) -> np.ndarray:
        """The extended Gram [in + 1, in + 1] of a kernel's input, float32, whole."""
        stem = f"inputs/{self.manifest.layers[tensor].input}"
        if stem in self.arrays.tensors:
            return self._triangle(stem)
        if f"{stem}/factor" in self.arrays.tensors:
            factor = self.arrays.read(f"{stem}/factor")
            gram = np.matmul(factor, factor.T)
            gram[np.diag_indices(len(gram))] += self.arrays.read(f"{stem}/diagonal")
            return gram
        last = self.arrays.read(f"{stem}/last")
        # Blocks that are not correlated: s s^T / c between them.
        gram = np.outer(last, last / (last[-1] or 1))
        start = 0
        for name in self._blocks(stem):
            block = self._triangle(name)
            part = slice(start, start + len(block))
            gram[part, part] = block
            start = part.stop
        return gram

    def width(self, tensor: str) -> int:
        """Width in + 1 of a kernel's Gram, by the header; 0 where it is damaged."""
        stem = f"inputs/{self.manifest.layers[tensor].input}"
        held = self.arrays.tensors
        if stem in held:
            return side(held[stem].size)
        if f"{stem}/factor" in held and f"{stem}/diagonal" in held:
            width = held[f"{stem}/diagonal"].size
            factor = held[f"{stem}/factor"].shape
            return width if len(factor) == 2 and factor[0] == width else 0
        if f"{stem}/last" in held:
            width = held[f"{stem}/last"].size
            inside = sum(side(held[name].size) for name in self._blocks(stem))
            return width if inside == width - 1 else 0
        return 0

    def output(self, tensor: str) -> np.ndarray:
        """The Gram [out, out] of the gradients at a layer's output, float32."""
        return self._triangle(f"outputs/{tensor}")

    def output_width(self, tensor: str) -> int:
        """Width of a kernel's gradients, by the header; 0 where there are none."""
        info = self.arrays.tensors.get(f"outputs/{tensor}")
        return 0 if info is None else side(info.size)

    def fisher(self, tensor: str) -> np.ndarray:
        """The diagonal Fisher of a tensor, in its shape: a view of the file."""
        return self.arrays.read(tensor)

    def tokens(self, tensor: str) -> float:
        """Tokens that a kernel's Gram is the mean of."""
        return float(self.manifest.counts.get(self.manifest.layers[tensor].input, 0))

    def _triangle(self, name: str) -> np.ndarray:
        flat = self.arrays.read(name)
        return unpacked(flat, side(len(flat)))

    def _blocks(self, stem: str) -> list[str]:
        found, number = [], 0
        while (name := f"{stem}/block_{number}") in self.arrays.tensors:
            found.append(name)
            number += 1
        return found


def side(size: int) -> int:
    """Rows n of a packed triangle of n (n + 1) / 2 values; 0 if there is none."""
    n = (math.isqrt(8 * size + 1) - 1) // 2
    return n if n * (n + 1) // 2 == size else 0


def stored_gram(
    name: str, gram: np.ndarray, *, block: int = 0, rank: int = 0
) -> dict[str, np.ndarray]:
    """The arrays that an input's extended Gram is written as.

    Args:
      name: of the input.
      gram: [n, n].
      block: inputs of a block (`gram_forms.block_diagonal`); 0 keeps all.
      rank: of a low-rank form (`gram_forms.low_rank`); 0 keeps all.
    """
    stem = f"inputs/{name}"
    if rank:
        factor, diagonal = low_rank(gram, rank)
        return {f"{stem}/factor": factor, f"{stem}/diagonal": diagonal}
    if block:
        plain = len(gram) - 1
        found = {f"{stem}/last": gram[-1]}
        for number, start in enumerate(range(0, plain, block)):
            part = slice(start, min(start + block, plain))
            found[f"{stem}/block_{number}"] = packed(gram[part, part])
        return found
    return {stem: packed(gram)}


def write_statistics(
    file: Path, manifest: Manifest, arrays: Mapping[str, np.ndarray]
) -> None:
    """Writes a file of statistics, whole or not at all.

    Args:
      file: replaced if it is there.
      manifest: what it says of itself.
      arrays: those of `stored_gram`, and triangles (`gram_forms.packed`) under
        'outputs/<tensor>'; or Fishers by the names and shapes of the model's tensors.

    Raises:
      WriteFailed: the disk is full or the folder not writable.
    """
    said = {"schema_version": SCHEMA, **asdict(manifest)}
    said["layers"] = {name: layer._asdict() for name, layer in manifest.layers.items()}
    metadata = {"format": "pt", _KEY: json.dumps(said, sort_keys=True)}
    with atomic.file(file) as staging:
        tensors = {name: _plain(x) for name, x in arrays.items()}
        safetensors.numpy.save_file(tensors, str(staging), metadata=metadata)


def read_statistics(file: Path) -> LazyStatistics:
    """Opens a file of statistics; reads its header alone.

    Raises:
      CheckpointError: no such file, truncated, no statistics, or of a later version.
    """
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file of statistics")
    tensors = read_header(file)
    with file.open("rb") as handle:
        (length,) = struct.unpack("<Q", handle.read(8))
        metadata = json.loads(handle.read(length)).get("__metadata__") or {}
    if _KEY not in metadata:
        raise CheckpointError(
            f"{file}: holds no statistics; fusion-jax statistics writes such a file"
        )
    try:
        said = json.loads(metadata[_KEY])
        version = said.pop("schema_version")
        if version > SCHEMA:
            raise CheckpointError(
                f"{file}: statistics of version {version}, this program reads up to "
                f"{SCHEMA}; install a newer one"
            )
        layers = {name: Layer(**layer) for name, layer in said.pop("layers").items()}
        manifest = Manifest(layers=layers, **said)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{file}: what it says of itself cannot be read ({error!r}); write it again"
        ) from error
    return LazyStatistics(file, manifest, LazyCheckpoint(file.parent, tensors))


def weights_sha256(model: LazyCheckpoint) -> str:
    """SHA-256 of a model's tensors: sorted names, dtypes, shapes and bytes.

    The same weights in other shards have the same hash. Nothing is held in memory.
    """
    digest = hashlib.sha256()
    for name, info in sorted(model.tensors.items()):
        digest.update(f"{name}\0{info.dtype}\0{info.shape}\0".encode())
        flat = model.read(name).reshape(-1).view(np.uint8)
        for start in range(0, len(flat), _CHUNK):
            digest.update(flat[start : start + _CHUNK].data)
    return digest.hexdigest()


def _plain(x: Any) -> np.ndarray:
    return np.asarray(x, np.float32, order="C")
