"""What a module is: one frozen record, checked when it is made."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

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
        wrong = [*_choices(self), *_numbers(self), *_patterns(self)]
        if not wrong:
            wrong = _together(self)
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


def _choices(config: PeftConfig) -> list[str]:
    if config.kind not in INITS:
        return [f"kind = {config.kind!r}: choose one of {', '.join(INITS)}"]
    choices = {
        "init": INITS[config.kind],
        "place": PLACES,
        "activation": ("", *ACTIVATIONS),
    }
    return [
        f"{name} = {getattr(config, name)!r}: for {config.kind} choose one of "
        f"{', '.join(map(repr, allowed))}"
        for name, allowed in choices.items()
        if getattr(config, name) not in allowed
    ]


def _numbers(config: PeftConfig) -> list[str]:
    wrong = []
    least = {"rank": 1, "phm_dim": 1, "phm_rank": 1}
    least |= dict.fromkeys(("bottleneck", "length", "mlp_width"), 0)
    for name, limit in least.items():
        value = getattr(config, name)
        if isinstance(value, bool) or value != int(value) or value < limit:
            wrong.append(f"{name} = {value!r}: a whole number, at least {limit}")
    if not config.alpha > 0:
        wrong.append(f"alpha = {config.alpha!r}: above 0")
    if not 0 <= config.dropout < 1:
        wrong.append(f"dropout = {config.dropout!r}: in [0, 1)")
    if config.reduction_factor < 0:
        wrong.append(f"reduction_factor = {config.reduction_factor!r}: at least 0")
    wrong += [
        f"rank_pattern: {pattern!r} has rank {rank!r}: a whole number, at least 1"
        for pattern, rank in config.rank_pattern
        if rank != int(rank) or rank < 1
    ]
    wrong += [
        f"alpha_pattern: {pattern!r} has alpha {alpha!r}: above 0"
        for pattern, alpha in config.alpha_pattern
        if not alpha > 0
    ]
    return wrong


def _patterns(config: PeftConfig) -> list[str]:
    wrong = []
    lists = {
        name: getattr(config, name) for name in ("targets", "feedforward", "replaces")
    }
    for name in ("rank_pattern", "alpha_pattern"):
        lists[name] = tuple(pattern for pattern, _ in getattr(config, name))
    for name, patterns in lists.items():
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                wrong.append(f"{name}: {pattern!r} is no regular expression ({error})")
    return wrong


def _together(config: PeftConfig) -> list[str]:
    """Options that exclude each other, or that this kind would not read."""
    own = {
        "lora": (
            *("rank", "alpha", "rank_pattern", "alpha_pattern"),
            *("use_rslora", "use_dora", "dropout"),
        ),
        "ia3": ("feedforward",),
        "adapter": ("place", "reduction_factor", "bottleneck", "activation", "scale"),
        "compacter": (
            *("place", "reduction_factor", "bottleneck", "activation", "scale"),
            *("phm_dim", "phm_rank"),
        ),
        "prefix": ("length", "mlp_width", "shift_positions"),
        "prompt": ("length",),
        "bitfit": (),
    }
    every = {name for names in own.values() for name in names}
    foreign = sorted(every - set(own[config.kind]))
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    wrong = [
        f"{name} = {getattr(config, name)!r}: {config.kind} does not read it, leave it "
        f"at {defaults[name]!r}"
        for name in foreign
        if getattr(config, name) != defaults[name]
    ]
    if config.kind == "compacter" and config.place == "parallel":
        wrong.append("place = 'parallel': a compacter is houlsby or pfeiffer")
    if config.use_dora and config.init == "pissa":
        wrong.append("use_dora with init = 'pissa': choose one of the two")
    if config.kind == "prompt" and config.targets:
        wrong.append("targets: a prompt stands before the word table alone")
    return wrong
