"""Which input tensors make each output tensor of a mergekit file, and its depth."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fusion_jax.checkpoints.block_names import comes_first, place_of
from fusion_jax.checkpoints.mergekit.models import Model
from fusion_jax.checkpoints.mergekit.parameters import Scope
from fusion_jax.checkpoints.mergekit.yaml import Path, Reading

# Computed from the configuration when a model is built; old files carry them.
_BUFFERS = re.compile(
    r".*(rotary_emb\.inv_freq|\.masked_bias|position_ids)|(.*\.)?h\.\d+\.attn\.bias"
)


@dataclass(frozen=True)
class Part:
    """A slice of a file with its models opened.

    Attributes:
      models: its inputs, the base among them where the method sees it.
      layers: [from, to) of each input's blocks; None for all.
      own: parameters of each input.
      scopes: of slice, module and file, from the inside out.
      base: of the slice.
      path: where it stands in the file.
    """

    models: tuple[Model, ...]
    layers: tuple[tuple[int, int] | None, ...]
    own: tuple[Scope, ...]
    scopes: tuple[Scope, ...]
    base: Model | None
    path: Path


class Row(NamedTuple):
    """An output tensor.

    Attributes:
      name: in the output.
      tensors: name in each of the part's models.
      depth: t in [0, 1] for gradients.
      part: that it belongs to.
    """

    name: str
    tensors: tuple[str, ...]
    depth: float
    part: Part


Covers = Callable[[str], bool]
"""Whether a tensor belongs to the module that is being read."""


def whole(part: Part, covers: Covers, reading: Reading) -> list[Row]:
    """Rows of models that are merged over all their layers."""
    first = part.models[0]
    absent = _Absent(reading, part.path)
    rows = []
    for name in _names(part.models):
        if not covers(name):
            continue
        place = place_of(name, first.stacks)
        depth = 0.0 if place is None else _depth(place.block, first.stacks[place.stack])
        tensors = absent.find(part.models, [name] * len(part.models), name)
        if tensors is not None:
            rows.append(Row(name, tensors, depth, part))
    absent.report()
    return rows


def stacked(parts: Sequence[Part], covers: Covers, reading: Reading) -> list[Row]:
    """Rows of slices: the first one's embeddings, all blocks, the last one's head."""
    stacks = [_only_stack(model, covers) for part in parts for model in part.models]
    if None in stacks or len({stack for stack in stacks if stack}) != 1:
        found = sorted(
            {name for part in parts for m in part.models for name in m.stacks}
        )
        reading.fault(
            parts[0].path[:-1],
            "slices need models with one stack of blocks of the same name, found: "
            f"{', '.join(name for name in found if covers(name)) or 'none'}; models "
            "of several modules are sliced under modules",
        )
        return []
    (stack,) = {stack for stack in stacks if stack}
    rows = _outside(parts[0], stack, covers, reading, first=True)
    offset = 0
    for part in parts:
        found = _blocks(part, stack, offset, reading)
        offset += _length(part, stack)
        rows += found
    return rows + _outside(parts[-1], stack, covers, reading, first=False)


def _blocks(part: Part, stack: str, offset: int, reading: Reading) -> list[Row]:
    ranges = []
    for model, layers in zip(part.models, part.layers, strict=True):
        held = model.stacks[stack]
        start, stop = layers or (0, held)
        if stop > held:
            reading.fault(
                part.path,
                f"layer_range [{start}, {stop}] of '{model.label}', which has {held} "
                f"blocks: {stack}.{held} is required but not there",
            )
        ranges.append(range(start, stop))
    lengths = {len(span) for span in ranges}
    if len(lengths) > 1:
        spans = ", ".join(
            f"'{model.label}' {len(span)}"
            for model, span in zip(part.models, ranges, strict=True)
        )
        reading.fault(
            part.path, f"its sources need the same number of layers, have {spans}"
        )
    if reading.faults:
        return []
    rests = [_rests(model, stack) for model in part.models]
    absent = _Absent(reading, part.path)
    rows = []
    (length,) = lengths
    for step in range(length):
        blocks = [span[step] for span in ranges]
        inside = dict.fromkeys(
            rest
            for held, block in zip(rests, blocks, strict=True)
            for rest in held[block]
        )
        for rest in inside:
            wanted = [f"{stack}.{block}.{rest}" for block in blocks]
            name = f"{stack}.{offset + step}.{rest}"
            tensors = absent.find(part.models, wanted, name)
            if tensors is not None:
                rows.append(Row(name, tensors, _depth(step, length), part))
    absent.report()
    return rows


def _outside(
    part: Part, stack: str, covers: Covers, reading: Reading, *, first: bool
) -> list[Row]:
    absent = _Absent(reading, part.path)
    rows = []
    for name in _names(part.models):
        inside = place_of(name, {stack: 1}) is not None
        if inside or not covers(name) or comes_first(name) != first:
            continue
        tensors = absent.find(part.models, [name] * len(part.models), name)
        if tensors is not None:
            rows.append(Row(name, tensors, 0.0, part))
    absent.report()
    return rows


class _Absent:
    """Tensors that a model lacks while another has them, reported together."""

    def __init__(self, reading: Reading, path: Path):
        self.reading = reading
        self.path = path
        self.missing: dict[str, list[str]] = defaultdict(list)

    def find(
        self, models: Sequence[Model], wanted: Sequence[str], name: str
    ) -> tuple[str, ...] | None:
        """The tensor in each model; None for one that is left out of the output."""
        found = [model.find(want) for model, want in zip(models, wanted, strict=True)]
        if None not in found:
            return tuple(str(tensor) for tensor in found)
        if _BUFFERS.fullmatch(name):
            self.reading.note(
                (), f"{name} is computed from the configuration and left out"
            )
            return None
        for model, want, tensor in zip(models, wanted, found, strict=True):
            if tensor is None:
                self.missing[model.label].append(want)
        return None

    def report(self) -> None:
        for label, names in self.missing.items():
            self.reading.fault(
                self.path,
                f"'{label}' lacks {', '.join(names[:12])}"
                f"{f' and {len(names) - 12} more' if len(names) > 12 else ''}, which "
                "other inputs have; models of one merge need the same tensors",
            )


def _names(models: Iterable[Model]) -> list[str]:
    return list(
        dict.fromkeys(name for model in models for name in model.checkpoint.tensors)
    )


def _rests(model: Model, stack: str) -> dict[int, list[str]]:
    found: dict[int, list[str]] = defaultdict(list)
    for name in model.checkpoint.tensors:
        place = place_of(name, {stack: 1})
        if place is not None:
            found[place.block].append(place.rest)
    return found


def _only_stack(model: Model, covers: Covers) -> str | None:
    held = [stack for stack in model.stacks if covers(f"{stack}.0")]
    return held[0] if len(held) == 1 else None


def _length(part: Part, stack: str) -> int:
    start, stop = part.layers[0] or (0, part.models[0].stacks[stack])
    return stop - start


def _depth(block: int, length: int) -> float:
    return 1.0 if length == 1 else block / (length - 1)
