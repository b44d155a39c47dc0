"""The kinds of modules: one dict from a name to what a kind is."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from fusion_jax.peft import adapter, bitfit, compacter, ia3, lora, prefix, prompt
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


def _of_adapter(config: PeftConfig) -> frozenset[str]:
    start = config.init
    if config.kind == "adapter" and start == "default":
        start = adapter.STARTS[config.place]
    return frozenset(("noop_at_init",) if start == "zero_up" else ())


_BENT = "as their activation makes them no change of the host's weights"
_LONGER = "as they lengthen what the host reads, which no change of its weights does"

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
    "adapter": Kind(
        init=adapter.init,
        around=adapter.around,
        owns=adapter.OWNS,
        promises=_of_adapter,
        why=_BENT,
        reference="Houlsby et al. 2019, arXiv 1902.00751",
    ),
    "compacter": Kind(
        init=compacter.init,
        around=compacter.around,
        owns=compacter.OWNS,
        promises=_of_adapter,
        why=_BENT,
        across=compacter.ACROSS,
        reference="Karimi Mahabadi et al. 2021, arXiv 2106.04647",
    ),
    "prefix": Kind(
        init=prefix.init,
        around=prefix.around,
        owns=prefix.OWNS,
        promises=_always(),
        why=_LONGER,
        across=prefix.ACROSS,
        reference="Li and Liang 2021, arXiv 2101.00190",
    ),
    "prompt": Kind(
        init=prompt.init,
        around=prompt.around,
        owns=prompt.OWNS,
        promises=_always(),
        why=_LONGER,
        reference="Lester et al. 2021, arXiv 2104.08691",
    ),
    "bitfit": Kind(
        init=bitfit.init,
        around=bitfit.around,
        owns="",
        promises=_always("noop_at_init", "mergeable"),
        merge=bitfit.merge,
        replaced=bitfit.replaced,
        reference="Ben Zaken et al. 2021, arXiv 2106.10199",
    ),
}
"""kind -> what it is; the keys are those of `config.INITS`."""
