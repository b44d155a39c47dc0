"""What each leaf of a module means: which of its axes belong to the host."""

import re
from collections.abc import Iterable
from typing import NamedTuple

INSIDE = ""
"""An axis of the module's own: rank, bottleneck, slots."""


class Axis(NamedTuple):
    """An axis along which a leaf meets the host.

    Attributes:
      side: 'in' or 'out' of the layer that the leaf is named after.
      reads: whether the module reads activations there, or writes to them.
      fixed: whether the axis must be equal in both hosts, as the words of a table.
    """

    side: str
    reads: bool
    fixed: bool = False


ROWS = Axis("in", True, fixed=True)
READ_IN, READ_OUT = Axis("in", True), Axis("out", True)
WRITE_IN, WRITE_OUT = Axis("in", False), Axis("out", False)


class Meaning(NamedTuple):
    """How a leaf is ported.

    Attributes:
      form: 'linear' (a linear map acts on each axis), 'factors' (one factor a
        dimension, which a map that mixes dimensions cannot carry), or 'whole' (its
        shape is bound to the host's width).
      axes: one for each axis of the leaf, `INSIDE` or `Axis`.
      own: whether the leaf stands in the place of one of the host's, so that what the
        module says is its difference from that.
      path: of the layer that the leaf is named after; '' where there is none.
    """

    form: str
    axes: tuple[Axis | str, ...]
    own: bool
    path: str


INNER_HEAD = r"head/(?:dense|pre_classifier)"
"""The layer of RoBERTa's and DistilBERT's heads before the classes; it reads the
stream."""

_LAYER = r"(?P<path>.+)"
_TABLE: tuple[tuple[str, str, tuple[Axis | str, ...], bool], ...] = (
    # The rows of a table are words, and no activation.
    (r"(?P<path>encoder/embeddings/\w+)/lora/a", "linear", (ROWS, INSIDE), False),
    (rf"{_LAYER}/lora/a", "linear", (READ_IN, INSIDE), False),
    (rf"{_LAYER}/lora/b", "linear", (INSIDE, WRITE_OUT), False),
    (rf"{_LAYER}/lora/magnitude", "factors", (WRITE_OUT,), False),
    (rf"{_LAYER}/ia3/scale", "factors", (WRITE_OUT,), False),
    (rf"{_LAYER}/ia3/input_scale", "factors", (WRITE_IN,), False),
    (rf"{_LAYER}/adapter/down/kernel", "linear", (READ_OUT, INSIDE), False),
    (rf"{_LAYER}/adapter/down/bias", "linear", (INSIDE,), False),
    (rf"{_LAYER}/adapter/up/kernel", "linear", (INSIDE, WRITE_OUT), False),
    (rf"{_LAYER}/adapter/up/bias", "linear", (WRITE_OUT,), False),
    (r"(?P<path>)compacter/rule", "whole", (INSIDE,) * 3, False),
    (rf"{_LAYER}/compacter/(down|up)/(left|right)", "whole", (INSIDE,) * 3, False),
    (rf"{_LAYER}/compacter/down/bias", "whole", (INSIDE,), False),
    (rf"{_LAYER}/compacter/up/bias", "whole", (INSIDE,), False),
    (rf"{_LAYER}/prefix/rows", "linear", (INSIDE, WRITE_OUT), False),
    (rf"{_LAYER}/prompt/rows", "linear", (INSIDE, WRITE_OUT), False),
    # Leaves under the host's own names. The classes of a head are no width, and neither
    # is what a layer of its own writes to the next.
    (rf"(?P<path>{INNER_HEAD})/kernel", "linear", (READ_IN, INSIDE), False),
    (rf"(?P<path>{INNER_HEAD})/bias", "linear", (INSIDE,), False),
    (r"(?P<path>head/(classifier|span|choice))/kernel", "linear", (READ_IN, INSIDE),
     False),
    (r"(?P<path>head/(classifier|span|choice))/bias", "linear", (INSIDE,), False),
    (rf"{_LAYER}/kernel", "linear", (READ_IN, WRITE_OUT), True),
    (rf"{_LAYER}/bias", "linear", (WRITE_OUT,), True),
    (rf"{_LAYER}/scale", "factors", (WRITE_OUT,), True),
)  # fmt: skip
_MEANINGS = [
    (re.compile(pattern), form, axes, own) for pattern, form, axes, own in _TABLE
]


def meaning_of(name: str, leaves: Iterable[str] = ()) -> Meaning:
    """What a leaf of a module means.

    Args:
      name: of the leaf.
      leaves: names of the module's leaves: where the head has a layer before it, the
        classifier reads that and not the host.

    Raises:
      ValueError: no entry of the table covers the name.
    """
    for pattern, form, axes, own in _MEANINGS:
        found = pattern.fullmatch(name)
        if found:
            if found["path"] == "head/classifier" and any(
                re.fullmatch(f"{INNER_HEAD}/kernel", leaf) for leaf in leaves
            ):
                axes = (INSIDE,) * len(axes)
            return Meaning(form, axes, own, found["path"])
    raise ValueError(
        f"{name}: no leaf of a module is called so; porting knows "
        f"{', '.join(pattern for pattern, *_ in _TABLE[1:])}"
    )
