"""Keys of Hugging Face peft's adapter_config.json: what each may say, as data.

A key that is read stands in `READ`; one that leaves what a trained module computes as
it is, in `HARMLESS`; one that does not, in `REFUSED`, with what a file may have there
and why anything else is refused. A key in neither is a newer peft's.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

# A switch that is off, whatever its name, changes nothing.
_OFF = (None, False, "", "none")

_COMMON = (
    "peft_type",
    "task_type",
    "base_model_name_or_path",
    "modules_to_save",
    "inference_mode",
)
_TARGETS = (
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "fan_in_fan_out",
)
_VIRTUAL = (
    "num_virtual_tokens",
    "token_dim",
    "num_layers",
    "num_attention_heads",
    "num_transformer_submodules",
)
READ: Mapping[str, tuple[str, ...]] = {
    "LORA": (
        *_COMMON,
        *_TARGETS,
        "r",
        "lora_alpha",
        "lora_dropout",
        "rank_pattern",
        "alpha_pattern",
        "use_rslora",
        "use_dora",
        "bias",
        "init_lora_weights",
    ),
    "IA3": (*_COMMON, *_TARGETS, "feedforward_modules"),
    "PROMPT_TUNING": (*_COMMON, *_VIRTUAL),
    "PREFIX_TUNING": (*_COMMON, *_VIRTUAL, "prefix_projection"),
}
"""peft_type -> keys whose values go into our config."""

HARMLESS: Collection[str] = (
    "auto_mapping",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "init_ia3_weights",
    "init_weights",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "prompt_tuning_init",
    "prompt_tuning_init_text",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "tokenizer_kwargs",
    "tokenizer_name_or_path",
    "velora_config",
    "encoder_hidden_size",
    "ephemeral_gpu_offload",
)
"""Of how a module was begun or trained, and of who wrote it."""

REFUSED: Mapping[str, str] = {
    "alora_invocation_tokens": "updates that wait for a token are not supported",
    "arrow_config": "routing between modules is not supported",
    "kasa_config": "its update is no plain product of two matrices",
    "layer_replication": "the host would have other layers",
    "loftq_config": "it was trained on a quantised host, which is not the one named",
    "lora_bias": "an update with a bias of its own is not supported",
    "monteclora_config": "its update is no plain product of two matrices",
    "target_parameters": "updates of parameters that are no layers are not supported",
    "trainable_token_indices": "rows of the embedding table were trained beside it",
    "use_bdlora": "its update is no plain product of two matrices",
    "use_qalora": "its update is no plain product of two matrices",
}
"""Key -> why a file that has it set cannot be read."""

# They start from the host's own matrices and leave a changed host behind.
_HOST_CHANGING = re.compile(r"(?i)pissa.*|olora|corda|loftq|lora_ga|mica")


def key_faults(
    values: Mapping[str, Any], ignore: Collection[str] = ()
) -> tuple[list[str], list[str]]:
    """What is wrong with the keys of a config, without looking into those that count.

    Args:
      values: of adapter_config.json.
      ignore: keys that are to be passed over, whatever they say.

    Returns:
      (faults, warnings).
    """
    kind = str(values.get("peft_type"))
    if kind not in READ:
        return [
            f"peft_type {kind!r} is not one of {', '.join(READ)}: kinds that have no "
            "counterpart here are not read"
        ], []
    faults, warnings = [], []
    for key, value in sorted(values.items()):
        if key in READ[kind] or key in HARMLESS or key in ignore:
            continue
        off = value in _OFF or value in ({}, [])
        if key in REFUSED:
            if not off:
                faults.append(f"{key} is {value!r}: {REFUSED[key]}")
        elif off:
            warnings.append(f"{key} is not known here; it is off, so it is passed over")
        else:
            faults.append(
                f"{key} is not known here and is {value!r}: a newer peft may mean "
                f"anything by it; if it changes nothing, pass it over by ignore={key!r}"
            )
    init = values.get("init_lora_weights")
    if isinstance(init, str) and _HOST_CHANGING.fullmatch(init):
        faults.append(
            f"init_lora_weights is {init!r}: the host was changed at the start, and "
            "the module alone does not say how; save it as a plain LoRA "
            "(path_initial_model_for_weight_conversion of torch peft)"
        )
    return faults, warnings
