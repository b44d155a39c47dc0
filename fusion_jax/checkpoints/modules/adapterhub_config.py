"""The config of AdapterHub's bottleneck adapters, in and out of ours."""

from collections.abc import Collection, Mapping
from typing import Any

from fusion_jax.peft import PeftConfig

ATTENTION, OUTPUT = "mh_adapter", "output_adapter"
# Ours -> theirs; the first is what is written.
ACTIVATIONS: tuple[tuple[str, str], ...] = (
    ("relu", "relu"),
    ("gelu", "gelu"),
    ("gelu_new", "gelu_new"),
    ("swish", "swish"),
    ("swish", "silu"),
    ("tanh", "tanh"),
)
# What library versions without a 'version' in the file called them.
_LEGACY_ACTIVATIONS = {"gelu": "gelu_new", "gelu_orig": "gelu"}
_READ = (
    ATTENTION,
    OUTPUT,
    "architecture",
    "is_parallel",
    "leave_out",
    "non_linearity",
    "original_ln_before",
    "reduction_factor",
    "residual_before_ln",
    "scaling",
)
_HARMLESS = (
    "adapter_residual_before_ln",  # counts with a norm of its own alone
    "dropout",
    "init_weights",
    "init_weights_seed",
    "inv_adapter_reduction_factor",
    "stochastic_depth",
)
# Of Kronecker products, which count with phm_layer alone.
_PHM = ("phm_", "factorized_phm", "shared_", "learn_phm", "hypercomplex_")
_WANTED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "ln_before": ((False,), "a norm of its own is not supported"),
    "ln_after": ((False,), "a norm of its own is not supported"),
    "original_ln_after": ((True,), "the host's norm would be left out"),
    "use_gating": ((False,), "a gate is not supported"),
    "inv_adapter": ((None,), "an invertible adapter after the embeddings is another"),
    "cross_adapter": ((False,), "no host here has cross-attention"),
    "phm_layer": ((False,), "a Compacter is not read from this form"),
}
"""Key -> (what it may say, why nothing else)."""


def read_config(
    values: Mapping[str, Any], *, versioned: bool, post_norm: bool
) -> tuple[dict[str, Any], list[str], list[str]]:
    """Our fields of a bottleneck's config.

    Args:
      values: 'config' of adapter_config.json.
      versioned: whether the file says of which version it is.
      post_norm: whether the host's norms follow the sums.

    Returns:
      (fields of `PeftConfig`, faults, warnings).
    """
    faults, notes = [], []
    if values.get("architecture"):
        faults.append(
            f"architecture {values['architecture']!r} is no bottleneck; LoRA, (IA)^3, "
            "prompt and prefix are read from peft's form"
        )
    for key, value in sorted(values.items()):
        if key in _WANTED:
            allowed, why = _WANTED[key]
            if value not in allowed:
                faults.append(f"{key} is {value!r}: {why}")
        elif key in _READ or key in _HARMLESS or key.startswith(_PHM):
            continue
        elif value in (None, False) or value == []:
            notes.append(f"{key} is not known here; it is off, so it is passed over")
        else:
            faults.append(f"{key} is not known here and is {value!r}")
    parallel = bool(values.get("is_parallel", False))
    before = bool(values.get("original_ln_before", False)) and not parallel
    if before and values.get("residual_before_ln", True) is not True:
        faults.append("residual_before_ln is not true: another residual than ours")
    if (before or parallel) and not post_norm:
        faults.append(
            "original_ln_before or is_parallel on a host whose norms come first: the "
            "adapter reads the residual stream there, which ours does not"
        )
    scale = values.get("scaling", 1.0)
    if not isinstance(scale, int | float):
        faults.append(f"scaling is {scale!r}: a trained scaling is not supported")
    activation = str(values.get("non_linearity", "relu")).lower()
    if not versioned:
        activation = _LEGACY_ACTIVATIONS.get(activation, activation)
    ours = [mine for mine, theirs in ACTIVATIONS if theirs == activation]
    if not ours:
        known = ", ".join(theirs for _, theirs in ACTIVATIONS)
        faults.append(f"non_linearity {activation!r} is not one of {known}")
    if faults:
        return {}, faults, notes
    sequential = "houlsby" if values.get(ATTENTION) else "pfeiffer"
    fields = {
        "kind": "adapter",
        "place": "parallel" if parallel else sequential,
        "activation": ours[0],
        "scale": float(scale),
        "reduction_factor": factor_of(values, "default"),
    }
    return fields, faults, notes


def factor_of(values: Mapping[str, Any], layer: int | str) -> float:
    """The d / m of a layer: `reduction_factor` is a number, or one a layer."""
    factor = values.get("reduction_factor", 16)
    if isinstance(factor, Mapping):
        factor = factor.get(str(layer), factor.get("default", 0))
    return float(factor)


def written_config(
    config: PeftConfig,
    *,
    activation: str,
    scale: float,
    factor: float,
    ends: Collection[str],
) -> dict[str, Any]:
    """'config' of adapter_config.json.

    Args:
      config: ours.
      activation: by our name.
      scale: of what is added.
      factor: d / m.
      ends: what the layer paths of its parts end in, such as 'attention/output'.
    """
    normed = "mlp/norm" in ends
    return {
        "architecture": None,
        ATTENTION: "attention/output" in ends,
        OUTPUT: normed or "mlp/down" in ends,
        "reduction_factor": int(factor) if factor == int(factor) else factor,
        "non_linearity": activation,
        "original_ln_before": normed,
        "original_ln_after": True,
        "ln_before": False,
        "ln_after": False,
        "init_weights": "mam_adapter" if config.place == "parallel" else "bert",
        "is_parallel": config.place == "parallel",
        "scaling": float(scale),
        "use_gating": False,
        "residual_before_ln": True,
        "adapter_residual_before_ln": False,
        "inv_adapter": None,
        "inv_adapter_reduction_factor": None,
        "cross_adapter": False,
        "leave_out": [],
        "dropout": 0.0,
        "phm_layer": False,
    }
