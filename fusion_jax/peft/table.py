"""The kinds of modules: one dict from a name to what a kind is."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from fusion_jax.peft import ia3, lora
from fusion_jax.peft.config import PeftConfig
from fusion_jax.types import Around, Key, Params


def _nothing(config: PeftConfig) -> str:
    del config
    return ""


def _always(*promises: str) -> Callable[[PeftConfig], frozenset[str]]:
    return lambda config: frozenset(promises)


class Kind(NamedTuple):
    """What a kind of module is.

    Attributes:
      init: `(config, host, key) -> Params`, its leaves at their start.
      around: `(config, params, dropout_key=None) -> Around`; params are at least the
        leaves of the layers that are run, the host's and the module's in one tree.
      owns: regular expression of the names of its leaves.
      promises: `(config) -> names`: 'noop_at_init' (a fresh module changes no output),
        'mergeable', 'has_delta' (an update of kernels by `delta.delta`).
      merge: `(config, host, params) -> host`, or None.
      why: why it cannot be merged.
      replaced: `(config) -> regular expression` of the host leaves it trains, or ''.
      across: regular expression of its leaves that several layers read, or ''.
      reference: where it comes from.
    """

    init: Callable[[PeftConfig, Params, Key], Params]
    around: Callable[..., Around]
    owns: str
    promises: Callable[[PeftConfig], frozenset[str]]
    merge: Callable[[PeftConfig, Params, Params], Params] | None = None
    why: str = ""
    replaced: Callable[[PeftConfig], str] = _nothing
    across: str = ""
    reference: str = ""


def _of_lora(config: PeftConfig) -> frozenset[str]:
    # PiSSA is a no-op too, on the host that it makes.
    quiet = () if config.init in ("random", "pissa") else ("noop_at_init",)
    return frozenset((*quiet, "mergeable", "has_delta"))


KINDS: Mapping[str, Kind] = {
    "lora": Kind(
        init=lora.init,
        around=lora.around,
        owns=lora.OWNS,
        promises=_of_lora,
        merge=lora.merge,
        reference="Hu et al. 2021, arXiv 2106.09685",
    ),
    "ia3": Kind(
        init=ia3.init,
        around=ia3.around,
        owns=ia3.OWNS,
        promises=_always("noop_at_init", "mergeable"),
        merge=ia3.merge,
        reference="Liu et al. 2022, arXiv 2205.05638",
    ),
}
"""kind -> what it is; the keys are those of `config.INITS`."""
