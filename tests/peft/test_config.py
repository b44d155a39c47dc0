import json

import jax
import pytest

from fusion_jax.peft import PeftConfig, init_module
from tests.peft.hosts import CONFIGS, host_of


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_comes_back_from_json(name):
    config = CONFIGS[name]
    assert PeftConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert hash(config) == hash(PeftConfig.from_json(config.to_json()))


def test_all_faults_of_a_config_are_told_at_once():
    with pytest.raises(ValueError) as told:
        PeftConfig(
            rank=0,
            alpha=-1,
            dropout=1.0,
            init="xavier",
            place="beside",
            activation="mish",
            targets=("(",),
            rank_pattern={"query": 0},
            alpha_pattern=(("[", 0.0),),
        )
    said = str(told.value)
    for fault in (
        *("rank = 0", "alpha = -1", "dropout = 1.0", "init = 'xavier'", "'beside'"),
        *("'mish'", "targets: '('", "has rank 0", "'[' has alpha 0.0"),
        "alpha_pattern: '['",
    ):
        assert fault in said, fault


@pytest.mark.parametrize(
    "options, said",
    [
        ({"kind": "loha"}, "choose one of lora, ia3"),
        ({"kind": "ia3", "rank": 4}, "rank = 4: ia3 does not read it"),
        ({"kind": "lora", "length": 4}, "length = 4: lora does not read it"),
        ({"use_dora": True, "init": "pissa"}, "choose one of the two"),
        ({"kind": "compacter", "place": "parallel"}, "houlsby or pfeiffer"),
        ({"kind": "prompt", "targets": ("query",)}, "word table alone"),
        ({"kind": "prefix", "length": 1.5}, "length = 1.5: a whole number"),
        ({"rank": "8"}, "rank = '8': a whole number"),
        (
            {"alpha": None, "use_dora": 1},
            "alpha = None: a finite number; use_dora = 1: true",
        ),
        ({"alpha": float("inf")}, "alpha = inf: a finite number"),
        ({"kind": "adapter", "scale": float("nan")}, "scale = nan: a finite number"),
        ({"kind": "prefix", "shift_positions": 1}, "shift_positions = 1: true or"),
        ({"targets": (3,)}, "targets = (3,): a list of patterns"),
        ({"rank_pattern": (("query",),)}, "a list of pairs"),
    ],
)
def test_what_makes_no_sense_is_named(options, said):
    with pytest.raises(ValueError, match="PeftConfig") as told:
        PeftConfig(**options)
    assert said in str(told.value)


def test_unknown_fields_of_a_record_are_named_with_the_known():
    with pytest.raises(ValueError, match="no lora_alpha; its fields are activation"):
        PeftConfig.from_json({"kind": "lora", "lora_alpha": 3})


@pytest.mark.parametrize(
    "family, options, said",
    [
        ("bert", {"targets": ("q_proj",)}, r"targets 'q_proj'; its layers are"),
        ("gpt2", {"kind": "prefix"}, "gpt2 computes query, key and value in one"),
        ("bert", {"rank": 99, "init": "pissa"}, r"rank 99 is above min\(16, 16\)"),
        ("bert", {"kind": "compacter"}, "is 0"),
        ("bert", {"kind": "compacter", "bottleneck": 3}, "phm_dim = 4 does not div"),
        (
            "bert",
            {"kind": "adapter", "place": "parallel", "targets": ("attention/output",)},
            "ends a feed-forward",
        ),
        ("bert", {"kind": "prefix", "targets": ("mlp",)}, "no attention matches 'mlp'"),
        ("bert", {"use_dora": True, "targets": ("word",)}, "use_dora on a table"),
    ],
)
def test_what_does_not_fit_a_host_is_named(family, options, said):
    with pytest.raises(ValueError, match=said):
        init_module(PeftConfig(**options), host_of(family), jax.random.key(0))


def test_a_host_of_no_family_is_told_by_its_layers():
    with pytest.raises(ValueError, match="no family of encoder, gpt2, t5"):
        init_module(
            PeftConfig(), {"stem": {"kernel": host_of()["head"]}}, jax.random.key(0)
        )
