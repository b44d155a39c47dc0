"""A module: its config, its leaves, and the host that it was made for.

A module's leaves live in the host's own tree under names of their own, and its biases,
norms and head replace the host's. So a host with a module is one tree of parameters and
one model (`attach`), which is trained, searched, stacked and hashed like any other.

| kind | leaf | shape |
|---|---|---|
| lora | PATH/lora/a, PATH/lora/b | [in, r], [r, out]; of a table [V, r], [r, D] |
| lora, DoRA | PATH/lora/magnitude | [out] |
| ia3 | PATH/ia3/scale, or PATH/ia3/input_scale | [out], [in] |
| adapter | PATH/adapter/{down,up}/{kernel,bias} | [d, m], [m], [m, d], [d] |
| compacter | PATH/compacter/{down,up}/{left,right,bias} | [n, in/n, rank], [n, rank, out/n], [out] |
| compacter | compacter/rule, of all layers and both directions | [n, n, n] |
| prefix | ATTENTION/{key,value}/prefix/rows | [L, D] |
| prefix in training, with a network | prefix/GROUP/{embedding, hidden/kernel, hidden/bias} | [L, e], [e, mid], [mid] |
| | prefix/GROUP/output/{kernel,bias} | [layers, 2, mid, D], [layers, 2, D] |
| prompt | WORD TABLE/prompt/rows | [L, D] |
| bitfit, norms, head | the host's own names | |

PATH is the name of a layer's kernel without '/kernel'. An adapter at a norm's path (the
Pfeiffer place of hosts whose norms follow the sum) reads what is normed, and what it
adds is added before the norm.
"""  # noqa: E501

from collections.abc import Mapping
from typing import Any, NamedTuple

from fusion_jax.peft.config import PeftConfig
from fusion_jax.peft.table import KINDS
from fusion_jax.trees import flatten, partition, unflatten
from fusion_jax.types import Key, Params

NORMS = r"(?:.*[/_])?norm/(?:scale|bias)"


class Module(NamedTuple):
    """A module, beside a host or on its way to one.

    Attributes:
      config: of what kind and size it is.
      params: its leaves alone, by the names they have in the host's tree.
      host: what is known of the host: 'family', 'hidden_size', 'num_layers', 'sha256'
        of its weights, 'name'; may be empty.
    """

    config: PeftConfig
    params: Params
    host: Mapping[str, Any]


def init_module(
    config: PeftConfig,
    host: Params,
    key: Key,
    *,
    about: Mapping[str, Any] | None = None,
) -> Module:
    """A module at its start; what it replaces starts from the host's.

    Args:
      config: of the module.
      host: tree of the host. Values are read by DoRA, PiSSA, prompts from the
        vocabulary, and where host leaves are replaced; for the others, and under
        `jax.eval_shape`, shapes do.
      key: each leaf has a stream of its own.
      about: the module's `host`.

    Returns:
      The module. Of PiSSA it belongs on `pissa.residual_host(host, module)`.

    Raises:
      ValueError: targets that the host has not, or sizes that do not fit it.
    """
    own = KINDS[config.kind].init(config, host, key)
    taken = partition(host, replaced(config) or r"(?!)")[0]
    params = with_module(taken, own)
    if not flatten(params):
        raise ValueError(f"{config.kind}: the module has no leaf on this host")
    return Module(config, params, dict(about or {}))


def module_leaves(config: PeftConfig) -> str:
    """Regular expression of the names of all leaves of a module of a config."""
    patterns = (KINDS[config.kind].owns, replaced(config))
    return "|".join(f"(?:{pattern})" for pattern in patterns if pattern)


def host_leaves(config: PeftConfig) -> str:
    """Regular expression of all other names: what a fit of the module freezes."""
    return rf"(?!(?:{module_leaves(config)})\Z).*"


def replaced(config: PeftConfig) -> str:
    """Regular expression of the host leaves that the module has its own of, or ''."""
    patterns = [
        KINDS[config.kind].replaced(config),
        NORMS if config.train_norms else "",
        *config.replaces,
    ]
    return "|".join(f"(?:{pattern})" for pattern in patterns if pattern)


def with_module(host: Params, params: Params) -> Params:
    """The tree of the host with a module: its leaves replace and join the host's.

    Args:
      host: tree of the host.
      params: leaves of the module.

    Returns:
      One tree; no array is copied.
    """
    return unflatten({**flatten(host), **flatten(params)})


def merge_into(host: Params, module: Module) -> Params:
    """The host that computes by itself what it computes with the module.

    Args:
      host: tree of the host; may lack leaves that the module replaces.
      module: of a kind that is mergeable.

    Returns:
      Tree of the host's names and dtypes; products in float32.

    Raises:
      ValueError: the kind is not a change of the host's weights, or the module has
        leaves of layers that this host lacks.
    """
    config = module.config
    kind = KINDS[config.kind]
    if kind.merge is None:
        raise ValueError(f"{config.kind} modules cannot be merged, {kind.why}")
    taken, own = partition(module.params, replaced(config) or r"(?!)")
    whole = with_module(host, taken)
    _check_layers(config, whole, own)
    return kind.merge(config, whole, own)


def _check_layers(config: PeftConfig, host: Params, own: Params) -> None:
    known = flatten(host)
    lacking = []
    for name in flatten(own):
        path = name.rpartition(f"/{config.kind}/")[0]
        if f"{path}/kernel" not in known and f"{path}/embedding" not in known:
            lacking.append(path)
    if lacking:
        raise ValueError(
            f"{config.kind}: the host has no layer {', '.join(dict.fromkeys(lacking))};"
            " the module is of another architecture"
        )
