"""What a module is: one frozen record, checked when it is made."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from fusion_jax.peft.checks import faults

PLACES = ("houlsby", "pfeiffer", "parallel")
ACTIVATIONS = ("relu", "gelu", "gelu_new", "swish", "tanh")
INITS: Mapping[str, tuple[str, ...]] = {
    "lora": ("default", "gaussian", "he", "random", "pissa"),
    "ia3": ("default",),
    "adapter": ("default", "normal", "truncated", "zero_up"),
    "compacter": ("default", "xavier_normal", "zero_up"),
    "prefix": ("default",),
    "prompt": ("default", "vocabulary"),
    "bitfit": ("default",),
}
"""kind -> what its leaves may start from; the keys are the kinds there are."""


@dataclasses.dataclass(frozen=True)
class PeftConfig:
    """A kind of module, where its parts stand, and their sizes.

    A layer's path is the name of its kernel without '/kernel', such as
    'encoder/layer_0/attention/query'; an attention's path is what stands before its
    layers' names. A pattern is a regular expression that matches a path in full or the
    end of one from a '/' on: 'query|value' are these layers wherever they are.

    Attributes:
      kind: of `INITS`.
      targets: patterns of the paths that get a part; empty = the kind's own for the
        host's family, see `places.FAMILIES`. Layers for lora, ia3 (their output is
        scaled) and bitfit; layers after which an adapter or compacter stands (a norm:
        see `adapter`); attentions for prefix.
      feedforward: ia3: patterns of the targets whose input is scaled in place of the
        output; empty = the family's.
      rank: lora: r. alpha: lora: s = alpha / r.
      rank_pattern: lora: ordered (pattern, r); the first that matches counts.
      alpha_pattern: lora: ordered (pattern, alpha), likewise.
      use_rslora: s = alpha / sqrt(r).
      use_dora: the product is scaled to a trained norm for each output unit.
      init: of `INITS[kind]`.
      dropout: of the input of a low-rank product, in training.
      place: adapter, compacter: houlsby (after attention and feed-forward), pfeiffer
        (after the feed-forward alone) or parallel (beside it; adapter alone).
      reduction_factor: the bottleneck is the width divided by it; 0 = the kind's own:
        16, parallel 2, compacter 32.
      bottleneck: its width m; 0 = by reduction_factor.
      activation: of `ACTIVATIONS`; '' = houlsby gelu, pfeiffer and parallel relu,
        compacter gelu_new.
      scale: of what an adapter adds; 0 = 1, parallel 4.
      phm_dim: compacter: n Kronecker products a layer. phm_rank: of their factors.
      length: prefix, prompt: virtual tokens; 0 = prefix 30, prompt 100.
      shift_positions: prefix: the text takes the positions after the prefix, as torch
        peft has it; else it keeps those it has without one.
      mlp_width: prefix: width of the network that gives the rows in training; 0 = the
        rows themselves are trained.
      train_norms: whether the host's norms are trained and belong to the module.
      replaces: patterns of names of host leaves that are trained and belong to the
        module, such as 'head/.*'; they match a name in full.
    """

    kind: str = "lora"
    targets: tuple[str, ...] = ()
    feedforward: tuple[str, ...] = ()
    rank: int = 8
    alpha: float = 8.0
    rank_pattern: tuple[tuple[str, int], ...] = ()
    alpha_pattern: tuple[tuple[str, float], ...] = ()
    use_rslora: bool = False
    use_dora: bool = False
    init: str = "default"
    dropout: float = 0.0
    place: str = "houlsby"
    reduction_factor: float = 0
    bottleneck: int = 0
    activation: str = ""
    scale: float = 0.0
    phm_dim: int = 4
    phm_rank: int = 1
    length: int = 0
    mlp_width: int = 0
    shift_positions: bool = False
    train_norms: bool = False
    replaces: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises ValueError with every option that makes no sense."""
        for name in ("targets", "feedforward", "replaces"):
            given = getattr(self, name)
            given = (given,) if isinstance(given, str) else tuple(given)
            object.__setattr__(self, name, given)
        for name in ("rank_pattern", "alpha_pattern"):
            given = getattr(self, name)
            pairs = given.items() if isinstance(given, Mapping) else given
            object.__setattr__(self, name, tuple(tuple(pair) for pair in pairs))
        choices = {
            "kind": tuple(INITS),
            "init": INITS.get(str(self.kind), ()),
            "place": PLACES,
            "activation": ("", *ACTIVATIONS),
        }
        wrong = faults(self, choices)
        if wrong:
            raise ValueError("PeftConfig: " + "; ".join(wrong))

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values."""
        return {name: _plain(value) for name, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "PeftConfig":
        """The config of a record; fields that it lacks have their defaults.

        Raises:
          ValueError: fields that there are none of, or values that make no sense.
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(record.keys() - fields)
        if unknown:
            raise ValueError(
                f"PeftConfig has no {', '.join(unknown)}; its fields are "
                f"{', '.join(sorted(fields))}"
            )
        return cls(**record)


def matches(pattern: str, path: str) -> bool:
    """Whether a pattern means this path: in full, or its end from a '/' on."""
    return re.fullmatch(rf"(?:.*/)?(?:{pattern})", path) is not None


def length_of(config: PeftConfig) -> int:
    """Virtual tokens of a prefix or prompt: the config's, or the kind's own."""
    return config.length or {"prefix": 30, "prompt": 100}[config.kind]


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return value
