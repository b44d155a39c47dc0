"""Every fault of a mergekit file is said by name, with its line."""

from pathlib import Path

import pytest

from fusion_jax.checkpoints.mergekit.plan import read_plan
from fusion_jax.checkpoints.mergekit.yaml import MergekitError
from tests.checkpoints.constant_models import (
    EMBED,
    LINEAR,
    TA,
    TWO,
    effective,
    make_models,
    ta_a,
)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    return make_models(tmp_path_factory.mktemp("models"))


FAULTS = {
    "no filter fits and nothing stands outside": (
        ta_a("[{filter: q_proj, value: 0.9}]"),
        r"required parameter weight .* missing for 'a' .*model\.embed_tokens\.weight",
    ),
    "bare numbers among filters": (
        ta_a("[{filter: q_proj, value: 0.9}, 0.5]"),
        r"line 3, models\[0\]\.parameters\.weight: bare values stand among filters",
    ),
    "an empty gradient is absent": (
        ta_a("[]"),
        r"required parameter weight .* missing for 'a'",
    ),
    "no number": (ta_a("much"), r"line 3, .*weight: 'much' is not a number"),
    "slices without the base": (
        f"{TA}slices: [{{sources: [{{model: a, layer_range: [0, 4], parameters: "
        "{weight: 0.5}}]}]",
        r"line 3, slices\[0\]: the base 'base' is not among its sources",
    ),
    "a range past the last block": (
        "merge_method: passthrough\n"
        "slices: [{sources: [{model: a, layer_range: [0, 9]}]}]",
        r"layer_range \[0, 9\] of 'a', which has 4 .*layers\.4 is required",
    ),
    "ranges of different lengths": (
        f"{LINEAR}slices: [{{sources: [{{model: a, layer_range: [0, 2]}}, "
        "{model: b, layer_range: [0, 3]}]}]\nparameters: {weight: 1}",
        r"same number of layers, have 'a' 2, 'b' 3",
    ),
    "a slice without a range": (
        "merge_method: passthrough\nslices: [{sources: [{model: a}]}]",
        r"slices\[0\]\.sources\[0\]: has no layer_range",
    ),
    "slerp of three": (
        "merge_method: slerp\nbase_model: a\n"
        "models: [{model: a}, {model: b}, {model: base}]\nparameters: {t: 0.5}",
        r"slerp takes exactly 2 inputs, here are 3: a, b, base",
    ),
    "slerp without a base": (
        f"merge_method: slerp\n{TWO}parameters: {{t: 0.5}}",
        r"slerp requires a base_model",
    ),
    "slerp whose t stands in a model": (
        "merge_method: slerp\nbase_model: a\n"
        "models: [{model: a}, {model: b, parameters: {t: 0.5}}]",
        r"required parameter t of slerp is missing for the merge",
    ),
    "one model twice": (
        f"{LINEAR}models: [{{model: a, parameters: {{weight: 1}}}}, "
        "{model: ./a, parameters: {weight: 3}}]",
        r"'a' is listed twice",
    ),
    "a base without a weight in an average": (
        f"{LINEAR}base_model: base\nmodels: [{{model: a, parameters: {{weight: 1}}}}]",
        r"required parameter weight of linear is missing for 'base'",
    ),
    "ties without weights": (
        f"merge_method: ties\nbase_model: base\n{TWO}",
        r"required parameter weight of ties is missing for 'a'(.|\n)*missing for 'b'",
    ),
    "model_stock of one": (
        "merge_method: model_stock\nbase_model: base\nmodels: [{model: a}]",
        r"model_stock takes at least 3 inputs, here are 2: a, base",
    ),
    "passthrough with a base": (
        "merge_method: passthrough\nbase_model: base\nmodels: [{model: a}]",
        r"passthrough takes exactly 1 inputs, here are 2",
    ),
    "models and slices": (
        f"{LINEAR}models: [{{model: a}}]\n"
        "slices: [{sources: [{model: a, layer_range: [0, 4]}]}]",
        r"exactly one of models, slices and modules .* here: models, slices",
    ),
    "a method that nobody knows": (
        "merge_method: tise\nmodels: [{model: a}]",
        r"line 1, merge_method: 'tise' is not implemented; did you mean 'ties'",
    ),
    "a dtype by another name": (
        f"{LINEAR}models: [{{model: a, parameters: {{weight: 1}}}}]\ndtype: fp16",
        r"line 3, dtype: 'fp16' is not one of float16, bfloat16",
    ),
    "other heights of vocabulary": (
        f"{LINEAR}models: [{{model: a}}, {{model: wide}}]\nparameters: {{weight: 1}}",
        r"sizes of tensors differ: .*embed_tokens.* \('a' \[6, 8\], 'wide' \[8, 8\]\)"
        r".*tokenizer_source",
    ),
    "two ways to name the tokenizer": (
        f"{LINEAR}{TWO}tokenizer_source: base\ntokenizer: {{source: base}}",
        r"tokenizer and tokenizer_source are both given",
    ),
    "weights whose sum is zero": (
        f"{LINEAR}models: [{{model: a, parameters: {{weight: 1}}}}, "
        "{model: b, parameters: {weight: -1}}]",
        r"the weights 1, -1 sum to 0",
    ),
    "a negative weight under a mean over agreeing entries": (
        "merge_method: ties\nbase_model: base\nmodels: [{model: a, parameters: "
        "{weight: 1}}, {model: b, parameters: {weight: -0.999}}]",
        r"negative weight -0\.999.*\(at .*lm_head\.weight",
    ),
    "probabilities of della outside 0 to 1": (
        "merge_method: della\nbase_model: base\n"
        "models: [{model: a, parameters: {weight: 1, density: 0.9}}]",
        r"density 0\.9 with epsilon 0\.15 .* 0\.75 to 1\.05",
    ),
    "a misspelt parameter": (
        ta_a("0.3, densty: 0.1"),
        r"line 3, .*'densty' is unknown; did you mean 'density'",
    ),
    "a misspelt key": (
        ta_a("0.3", "base_modle: base"),
        r"line 4, base_modle: 'base_modle' is unknown; did you mean 'base_model'",
    ),
    "a key twice": (
        ta_a("0.3", "base_model: a"),
        r"base_model: the key stands here twice",
    ),
    "a model that is not there": (
        f"{LINEAR}models: [{{model: ./gone, parameters: {{weight: 1}}}}]",
        r"'\./gone': model folder gone does not exist",
    ),
    "a LoRA": (
        f"{LINEAR}models: [{{model: a+some_lora, parameters: {{weight: 1}}}}]",
        r"'a\+some_lora': a LoRA on top of a model .* is not supported",
    ),
    "a LoRA, written out": (
        f"{LINEAR}models: [{{model: {{model: {{path: a}}, lora: {{path: b}}}}, "
        "parameters: {weight: 1}}]",
        r"model\.lora: a LoRA on top of a model is not supported",
    ),
    "a revision": (
        f"{LINEAR}models: [{{model: a@main, parameters: {{weight: 1}}}}]",
        r"'a@main': a revision .* is not supported",
    ),
    "a file of mergekit-moe": (
        "base_model: a\nexperts: [{source_model: b}]",
        r"mergekit-moe file, which is not supported",
    ),
    "several documents": (
        f"{LINEAR}{TWO}---\n{LINEAR}{TWO}",
        r"holds 2 YAML documents",
    ),
    "no YAML": ("models: [", r"not YAML"),
    "an unknown module": (
        f"{LINEAR}modules: {{foo: {{models: [{{model: a}}]}}}}",
        r"no tensor belongs to this module",
    ),
    "a token from a model outside": (
        f"{LINEAR}models: [{{model: t1, parameters: {{weight: 1}}}}]\n"
        "tokenizer: {source: union, tokens: {q: {source: t2}}}",
        r"tokens\.q: its row is asked of 't2', which is no input",
    ),
}


@pytest.mark.parametrize("text, said", FAULTS.values(), ids=FAULTS.keys())
def test_what_is_wrong_with_a_file_is_said_by_name(models, text, said):
    with pytest.raises(MergekitError, match=said):
        read_plan(text, models)


def test_all_unknown_names_are_said_at_once_or_passed_over_when_lenient(models):
    text = (
        f"{TA}nonsense: 1\nmodels: [{{model: a, foo: 2, parameters: {{weight: 0.3, "
        "densty: 0.1}}]\nparameters: {normalise: true}"
    )
    with pytest.raises(MergekitError) as caught:
        read_plan(text, models)
    names = ("nonsense", "foo", "densty", "normalise")
    assert all(f"'{name}' is unknown" in str(caught.value) for name in names)
    plan = read_plan(text, models, lenient=True)
    assert effective(plan)[EMBED] == pytest.approx(0.3)
    assert all(any(f"'{name}'" in note for note in plan.notes) for name in names)
