"""Plans of mergekit files: layers, vocabulary, dtypes, options, notes."""

from pathlib import Path

import numpy as np
import pytest

from fusion_jax.checkpoints.mergekit.plan import read_plan
from fusion_jax.checkpoints.mergekit.yaml import MergekitError
from fusion_jax.checkpoints.plan import Source
from fusion_jax.checkpoints.tensors import write_file
from tests.checkpoints.constant_models import (
    DOWN,
    EMBED,
    HEAD,
    LINEAR,
    NORM,
    TWO,
    WEIGHTS,
    make_models,
)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    return make_models(tmp_path_factory.mktemp("models"))


def test_settings_of_other_methods_are_noted_and_not_refused(models):
    text = f"{LINEAR}{WEIGHTS}\nparameters: {{int8_mask: true, density: 0.5}}"
    notes = read_plan(text, models).notes
    assert "density is no parameter of linear (ignored)" in notes


VOCABULARY = (
    f"{LINEAR}base_model: t1\nmodels: [{{model: t1}}, {{model: t2}}]\n"
    "parameters: {weight: 1}\n"
)


@pytest.mark.parametrize("source", ["base", "union", "t2"])
def test_tokenizer_source_lets_vocabularies_differ(models, source):
    plan = read_plan(f"{VOCABULARY}tokenizer_source: {source}", models)
    assert plan.tokenizer == {
        "source": source,
        "base": "t1",
        "pad_to_multiple_of": None,
        "tokens": {},
    }
    assert {t.name for t in plan.tensors} >= {EMBED, HEAD}


def test_tokens_have_their_own_sources(models):
    plan = read_plan(
        f"{VOCABULARY}tokenizer:\n  source: union\n  pad_to_multiple_of: 8\n"
        "  tokens:\n    x: {source: ./t2, force: true}\n"
        "    z: {source: {kind: zero}}\n"
        "    new: {source: {kind: model_token, model: t2, token_id: 4}}",
        models,
    )
    assert plan.tokenizer is not None
    assert plan.tokenizer["pad_to_multiple_of"] == 8
    assert plan.tokenizer["tokens"] == {
        "x": {"source": "t2", "force": True},
        "z": {"source": {"kind": "zero"}, "force": False},
        "new": {
            "source": {"kind": "model_token", "model": "t2", "token_id": 4},
            "force": False,
        },
    }


def test_a_new_token_is_allowed_with_the_tokenizer_of_the_base(models):
    plan = read_plan(
        f"{VOCABULARY}tokenizer: {{source: base, tokens: {{new: {{source: {{kind: "
        "zero}}}}",
        models,
    )
    assert plan.tokenizer is not None
    assert plan.tokenizer["tokens"]["new"]["source"] == {"kind": "zero"}


def test_stacked_blocks_change_the_number_of_layers(models):
    plan = read_plan(
        "merge_method: passthrough\nslices:\n"
        "  - sources: [{model: a, layer_range: [0, 3]}]\n"
        "  - sources: [{model: b, layer_range: [1, 4]}]",
        models,
    )
    assert plan.config_changes == {"num_hidden_layers": 6}
    assert plan.tensors[0].name == EMBED
    assert plan.tensors[-1].name in (HEAD, NORM)
    down = {t.name: t for t in plan.tensors if DOWN in t.name}
    (source,) = down["model.layers.4.mlp.down_proj.weight"].sources
    assert source == Source("b", "model.layers.2.mlp.down_proj.weight")


def test_dtypes_tied_heads_and_the_donor_are_in_the_plan(models):
    plan = read_plan(
        f"{LINEAR}models: [{{model: tied_a}}, {{model: b}}]\n"
        "parameters: {weight: 1}\ndtype: float32\n"
        "out_dtype: torch.bfloat16\nchat_template: auto",
        models,
    )
    assert (plan.dtype, plan.out_dtype) == ("float32", "bfloat16")
    assert plan.config_changes == {
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
    }
    assert (plan.donor, plan.chat_template) == ("tied_a", "auto")
    assert any("'tied_a', the first model listed" in note for note in plan.notes)


def test_choices_that_differ_from_mergekit_are_noted(models):
    text = f"merge_method: dare_linear\nbase_model: base\n{WEIGHTS}\n"
    dare = read_plan(text, models, random_seed=7).notes
    assert any("L1 norm" in note for note in dare)
    assert any("seed 7" in note for note in dare)
    plain = read_plan(f"{text}parameters: {{rescale: false}}", models).notes
    assert not any("L1 norm" in note for note in plain)
    average = read_plan(
        f"{LINEAR}base_model: base\n{TWO}parameters: {{weight: 1}}", models
    )
    assert any("one more input" in note for note in average.notes)


def test_task_vector_methods_keep_what_mergekit_keeps(models):
    text = (
        "merge_method: ties\nbase_model: base\nmodels:\n"
        "  - {model: a, parameters: {weight: 1, density: [0.2, 0.5]}}\n"
        "  - {model: b, parameters: {weight: 3, density: 1.7}}\n"
        "parameters: {lambda: 0.5}"
    )
    first = read_plan(text, models).tensors[0]
    assert first.base == Source("base", first.name)
    assert first.options == {
        "density": (0.2, 1.0),
        "scale": 0.5,
        "trim_scope": "tensor",
        "elect": "weighted",
        "aggregate": "mean",
    }


def write_tensors(folder: Path, names: list[str]) -> None:
    folder.mkdir()
    tensors = {name: np.ones((2, 2), np.float32) for name in names}
    write_file(folder / "model.safetensors", tensors)


def test_encoder_and_decoder_have_gradients_and_modules_of_their_own(tmp_path):
    inner = ["SelfAttention.q", "SelfAttention.k", "SelfAttention.v", "SelfAttention.o"]
    names = ["shared.weight", "lm_head.weight"]
    for side, count in (("encoder", 2), ("decoder", 3)):
        names += [
            f"{side}.block.{i}.layer.0.{part}.weight"
            for i in range(count)
            for part in inner
        ]
        names.append(f"{side}.final_layer_norm.weight")
    write_tensors(tmp_path / "x", names)
    plan = read_plan(
        f"{LINEAR}models: [{{model: x, parameters: {{weight: [1, 2]}}}}]\n"
        "parameters: {normalize: false}",
        tmp_path,
    )
    weights = {t.name: t.coefficients[0] for t in plan.tensors}
    q = "layer.0.SelfAttention.q.weight"
    assert [weights[f"encoder.block.{i}.{q}"] for i in range(2)] == [1, 2]
    assert [weights[f"decoder.block.{i}.{q}"] for i in range(3)] == [1, 1.5, 2]
    assert weights["shared.weight"] == weights["lm_head.weight"] == 1
    plan = read_plan(
        "merge_method: passthrough\nmodules:\n"
        "  shared: {models: [{model: x}]}\n  encoder: {models: [{model: x}]}\n"
        "  decoder:\n    slices: [{sources: [{model: x, layer_range: [1, 3]}]}]",
        tmp_path,
    )
    sources = {t.name: t.sources[0].tensor for t in plan.tensors}
    assert sources[f"decoder.block.1.{q}"] == f"decoder.block.2.{q}"
    assert set(names) - set(sources) == {
        f"decoder.block.2.layer.0.{part}.weight" for part in inner
    }
    with pytest.raises(MergekitError, match="sliced under modules"):
        read_plan(
            "merge_method: passthrough\n"
            "slices: [{sources: [{model: x, layer_range: [0, 1]}]}]",
            tmp_path,
        )
    with pytest.raises(MergekitError, match=r"no module covers shared\.weight"):
        read_plan(
            "merge_method: passthrough\nmodules: {encoder: {models: [{model: x}]}, "
            "decoder: {models: [{model: x}]}}",
            tmp_path,
        )


def test_tensors_that_one_model_lacks_are_all_named(tmp_path):
    write_tensors(tmp_path / "x", ["a.weight", "b.weight", "rotary_emb.inv_freq"])
    write_tensors(tmp_path / "y", ["a.weight"])
    text = f"{LINEAR}models: [{{model: x}}, {{model: y}}]\nparameters: {{weight: 1}}"
    with pytest.raises(MergekitError, match=r"'y' lacks b\.weight, which") as caught:
        read_plan(text, tmp_path)
    assert "inv_freq" not in str(caught.value)


@pytest.mark.parametrize(
    "flags, vectors",
    [
        ("{}", "leaf"),
        ("{nuslerp_row_wise: true}", "leaf"),
        ("{nuslerp_flatten: false}", "row"),
        ("{nuslerp_flatten: false, nuslerp_row_wise: true}", "column"),
    ],
)
def test_the_vectors_of_nuslerp_are_those_mergekit_turns(models, flags, vectors):
    # Held against mergekit 0.1.5 on random matrices of [3, 4].
    plan = read_plan(f"merge_method: nuslerp\n{WEIGHTS}\nparameters: {flags}", models)
    assert plan.tensors[0].options == {"vectors": vectors, "input_axis": -1}
    assert plan.tensors[0].coefficients == (0.25, 0.75)
