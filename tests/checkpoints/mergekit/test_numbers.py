"""The numbers of mergekit files, on models of constant weights."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from fusion_jax.checkpoints.mergekit.plan import read_plan
from fusion_jax.checkpoints.plan import MergePlan
from fusion_jax.checkpoints.run_merge import run_merge
from fusion_jax.checkpoints.tensors import read_weights
from tests.checkpoints.constant_models import (
    DOWN,
    EMBED,
    HEAD,
    LINEAR,
    NORM,
    OUT,
    QUERY,
    TA,
    TWO,
    WEIGHTS,
    blocks,
    effective,
    make_models,
    ta_a,
)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    return make_models(tmp_path_factory.mktemp("models"))


def merged(plan: MergePlan, names: set[str], out: Path) -> dict[str, np.ndarray]:
    """What a merge of files writes for some tensors; the rest would only repeat."""
    kept = tuple(tensor for tensor in plan.tensors if tensor.name in names)
    run_merge(replace(plan, tensors=kept), out)
    return {
        name: array.astype(np.float32) for name, (array, _) in read_weights(out).items()
    }


# Constant models make constant outputs, known by hand and by running mergekit 0.1.5.
LINEAR_NUMBERS = {
    "a gradient goes over the blocks and what is outside takes its first value": (
        ta_a("[0.1, 0.2, 0.4]"),
        {EMBED: 0.1, HEAD: 0.1, NORM: 0.1} | blocks(QUERY, 0.1, 0.5 / 3, 0.8 / 3, 0.4),
    ),
    "the first filter that is a part of the name counts": (
        ta_a(
            "[{filter: self_attn, value: [0, 1]}, {filter: layers.2, value: 0.7}, "
            "{filter: '*', value: 0.5}]"
        ),
        {EMBED: 0.5}
        | blocks(QUERY, 0, 1 / 3, 2 / 3, 1)
        | blocks(DOWN, 0.5, 0.5, 0.7, 0.5),
    ),
    "where no filter fits the next scope outside is asked": (
        ta_a("[{filter: q_proj, value: 0.9}]", "parameters: {weight: 0.25}"),
        {EMBED: 0.25} | blocks(QUERY, 0.9, 0.9, 0.9, 0.9),
    ),
    "3e-1 is a number": (ta_a("3e-1"), {EMBED: 0.3}),
    "source before slice before file": (
        f"{TA}slices:\n  - sources:\n"
        "    - {model: a, layer_range: [0, 4], parameters: {weight: 0.1}}\n"
        "    - {model: b, layer_range: [0, 4]}\n"
        "    - {model: base, layer_range: [0, 4]}\n"
        "    parameters: {weight: 0.2}\nparameters: {weight: 0.4}",
        {EMBED: 2.1},
    ),
    "each slice has its own gradient and one block is its end": (
        f"{TA}slices:\n  - sources:\n"
        "    - {model: a, layer_range: [0, 2], parameters: {weight: [0.1, 0.3]}}\n"
        "    - {model: base, layer_range: [0, 2]}\n  - sources:\n"
        "    - {model: a, layer_range: [3, 4], parameters: {weight: [0.5, 0.9]}}\n"
        "    - {model: base, layer_range: [3, 4]}",
        {EMBED: 0.1, HEAD: 0.5, NORM: 0.5} | blocks(QUERY, 0.1, 0.3, 0.9),
    ),
    "passthrough stacks blocks and scales what a filter names": (
        "merge_method: passthrough\nslices:\n"
        "  - sources: [{model: a, layer_range: [0, 3]}]\n"
        "  - sources:\n    - model: b\n      layer_range: [1, 4]\n"
        "      parameters:\n        scale:\n"
        "          - {filter: o_proj, value: 0.0}\n"
        "          - {filter: down_proj, value: 0.5}\n"
        "          - {value: 1.0}",
        {EMBED: 1, HEAD: 10, NORM: 10}
        | blocks(DOWN, 1, 1, 1, 5, 5, 5)
        | blocks(OUT, 1, 1, 1, 0, 0, 0),
    ),
    "filters of a model see its own block numbers": (
        f"{LINEAR}slices:\n  - sources:\n"
        "    - {model: a, layer_range: [0, 2], parameters: {weight: [0, 1]}}\n"
        "    - model: b\n      layer_range: [2, 4]\n"
        "      parameters: {weight: [{filter: layers.3, value: 3}, {value: 1}]}",
        {EMBED: 10, NORM: 10} | blocks(QUERY, 10, 7.75),
    ),
    "the base is one more input of an average": (
        f"{LINEAR}base_model: base\nmodels: [{{model: a}}, {{model: b}}]\n"
        "parameters: {weight: 1}",
        {EMBED: 11 / 3},
    ),
    "a base that slices do not list is no input of an average": (
        f"{LINEAR}base_model: base\nslices: [{{sources: [{{model: a, layer_range: "
        "[0, 2]}, {model: b, layer_range: [0, 2]}]}]\nparameters: {weight: 1}",
        {EMBED: 5.5} | blocks(QUERY, 5.5, 5.5),
    ),
    "the one module of a decoder is called default": (
        f"{LINEAR}modules: {{default: {{models: [{{model: a, parameters: {{weight: 1}}"
        "}, {model: b, parameters: {weight: 3}}], parameters: {normalize: false}}}",
        {EMBED: 31},
    ),
    "tied models have one tensor": (
        f"{LINEAR}models: [{{model: tied_a}}, {{model: tied_b}}]\n"
        "parameters: {weight: 1}",
        {EMBED: 2, HEAD: None},
    ),
    "a tied model lends its embedding as head": (
        f"{LINEAR}models: [{{model: tied_a}}, {{model: b}}]\nparameters: {{weight: 1}}",
        {EMBED: 5.5, HEAD: 5.5},
    ),
    "normalised task arithmetic": (
        f"{TA}{WEIGHTS}\nparameters: {{normalize: true, lambda: 1}}",
        {EMBED: 7.75},
    ),
}


@pytest.mark.parametrize(
    "text, expected", LINEAR_NUMBERS.values(), ids=LINEAR_NUMBERS.keys()
)
def test_coefficients_of_linear_merges_are_known(models, text, expected):
    found = effective(read_plan(text, models))
    for name, value in expected.items():
        assert found.get(name) == (value if value is None else pytest.approx(value))


METHOD_NUMBERS = {
    "slerp goes from the base to the other": (
        f"merge_method: slerp\nbase_model: b\n{TWO}parameters: {{t: 0.25}}",
        {EMBED: 7.75},
    ),
    "slerp with filters and gradients": (
        f"merge_method: slerp\nbase_model: a\n{TWO}parameters:\n  t:\n"
        "    - {filter: self_attn, value: [0, 1]}\n"
        "    - {filter: mlp, value: [1, 0]}\n    - {value: 0.5}",
        {EMBED: 5.5, HEAD: 5.5, NORM: 5.5}
        | blocks(QUERY, 1, 4, 7, 10)
        | blocks(DOWN, 10, 7, 4, 1),
    ),
    "each slice may have its base": (
        "merge_method: slerp\nslices:\n"
        "  - {sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: "
        "[0, 2]}], base_model: a, parameters: {t: 0.25}}\n"
        "  - {sources: [{model: a, layer_range: [2, 4]}, {model: b, layer_range: "
        "[2, 4]}], base_model: b, parameters: {t: 0.25}}",
        {EMBED: 3.25, HEAD: 7.75} | blocks(DOWN, 3.25, 3.25, 7.75, 7.75),
    ),
    "filters of shared parameters see the output's block numbers": (
        "merge_method: slerp\nbase_model: a\nslices: [{sources: [{model: a, "
        "layer_range: [2, 4]}, {model: b, layer_range: [2, 4]}], parameters: {t: "
        "[{filter: layers.0, value: 0.25}, {value: 0.5}]}}]",
        {EMBED: 5.5} | blocks(QUERY, 3.25, 5.5),
    ),
    "karcher counts the base": (
        f"merge_method: karcher\nbase_model: base\n{TWO}",
        {EMBED: 11 / 3},
    ),
    "a listed base needs no weight in methods of task vectors": (
        "merge_method: ties\nbase_model: base\n"
        "models: [{model: base}, {model: a, parameters: {weight: 0.5}}]",
        {EMBED: 1},
    ),
    "dare_ties with every switch": (
        "merge_method: dare_ties\nbase_model: base\nmodels:\n"
        "  - {model: a, parameters: {weight: 0.5, density: 1.0}}\n"
        "  - {model: b, parameters: {weight: 0.1, density: 1.0}}\n"
        "parameters: {normalize: true, int8_mask: true, rescale: false, lambda: 2.0}",
        {EMBED: 5},
    ),
    "the second weight of nuslerp over the sum is t": (
        f"merge_method: nuslerp\n{WEIGHTS}",
        {EMBED: 7.75},
    ),
    "nuslerp on task vectors": (
        f"merge_method: nuslerp\nbase_model: base\n{WEIGHTS}",
        {EMBED: 7.75},
    ),
    "multislerp": (f"merge_method: multislerp\n{WEIGHTS}", {EMBED: 7.75}),
    "multislerp of weights as they are": (
        f"merge_method: multislerp\n{WEIGHTS}\n"
        "parameters: {normalize_weights: false}",
        {EMBED: 31},
    ),
    "model_stock": (
        f"merge_method: model_stock\nbase_model: base\n{TWO}",
        {EMBED: 5.5},
    ),
    "dare_linear": (
        f"merge_method: dare_linear\nbase_model: base\n{WEIGHTS}",
        {EMBED: 31},
    ),
    "della": (f"merge_method: della\nbase_model: base\n{WEIGHTS}", {EMBED: 7.75}),
    "della_linear": (
        f"merge_method: della_linear\nbase_model: base\n{WEIGHTS}",
        {EMBED: 31},
    ),
    "breadcrumbs": (
        f"merge_method: breadcrumbs\nbase_model: base\n{WEIGHTS}",
        {EMBED: 31},
    ),
    "breadcrumbs_ties": (
        f"merge_method: breadcrumbs_ties\nbase_model: base\n{WEIGHTS}",
        {EMBED: 31},
    ),
    "sce": (
        f"merge_method: sce\nbase_model: base\n{TWO}",
        {EMBED: (1 + 1000) / 101},
    ),
    "ram": (f"merge_method: ram\nbase_model: base\n{TWO}", {EMBED: 5.5}),
    "ramplus_tl": (f"merge_method: ramplus_tl\nbase_model: base\n{TWO}", {EMBED: 5.5}),
    "nearswap": (
        "merge_method: nearswap\nbase_model: base\nmodels: [{model: a}]\n"
        "parameters: {t: 0.3}",
        {EMBED: 0.3},
    ),
    "arcee_fusion": (
        "merge_method: arcee_fusion\nbase_model: base\nmodels: [{model: a}]",
        {EMBED: 1},
    ),
    "a base alone is the result": (
        "merge_method: ties\nbase_model: base\nmodels: [{model: base}]",
        {EMBED: 0},
    ),
    "an average of bfloat16": (
        f"{LINEAR}models: [{{model: half, parameters: {{weight: 1}}}}]\n"
        "dtype: torch.bfloat16",
        {EMBED: 1},
    ),
}


@pytest.mark.parametrize(
    "text, expected", METHOD_NUMBERS.values(), ids=METHOD_NUMBERS.keys()
)
def test_every_method_gives_the_numbers_of_mergekit_on_constant_models(
    models, tmp_path, text, expected
):
    found = merged(read_plan(text, models), set(expected), tmp_path / "out")
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6)


T1, T2 = "[UNK] x y z".split(), "[UNK] y x q r".split()
# Rows of the output: those of t1 are 1, 2, 3, 4, those of t2 100, 200, ..., 500.
TOKENIZER_NUMBERS = {
    "the vocabulary of the base": ("tokenizer_source: base", [50.5, 151, 101.5, 4]),
    "the vocabulary of a model": (
        "tokenizer_source: t2",
        [50.5, 101.5, 151, 400, 500],
    ),
    "a union has the base's tokens first": (
        "tokenizer_source: union",
        [50.5, 151, 101.5, 4, 400, 500],
    ),
    "tokens with sources of their own, new ones, and padding": (
        "tokenizer:\n  source: union\n  pad_to_multiple_of: 8\n  tokens:\n"
        "    x: {source: t2, force: true}\n"
        "    z: {source: {kind: zero}}\n"
        "    q: {source: {kind: zero}, force: true}\n"
        "    r: {source: {kind: zero}, force: true}\n"
        "    new: {source: {kind: model_token, model: t2, token_id: 4}}",
        [50.5, 300, 101.5, 2, 0, 0, 500, 136.2857],
    ),
    "a new token in the base's vocabulary": (
        "tokenizer: {source: base, tokens: {new: {source: {kind: zero}}}}",
        [50.5, 151, 101.5, 4, 0],
    ),
}


@pytest.fixture(scope="module")
def with_tokenizers(models) -> Path:
    for name, words in (("t1", T1), ("t2", T2)):
        inner = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, "[UNK]"))
        inner.save(str(models / name / "tokenizer.json"))
    return models


@pytest.mark.parametrize(
    "text, rows", TOKENIZER_NUMBERS.values(), ids=TOKENIZER_NUMBERS.keys()
)
def test_rows_of_one_vocabulary_are_merged(with_tokenizers, tmp_path, text, rows):
    recipe = (
        f"{LINEAR}base_model: t1\nmodels: [{{model: t1}}, {{model: t2}}]\n"
        f"parameters: {{weight: 1}}\n{text}"
    )
    plan = read_plan(recipe, with_tokenizers)
    out = tmp_path / "out"
    found = merged(plan, {EMBED, HEAD, NORM}, out)
    for name in (EMBED, HEAD):
        want = np.outer(rows, np.ones(found[name].shape[1]))
        np.testing.assert_allclose(found[name], want, rtol=1e-5, err_msg=name)
    assert json.loads((out / "config.json").read_text())["vocab_size"] == len(rows)
    ids = Tokenizer.from_file(str(out / "tokenizer.json")).get_vocab()
    assert ids["[UNK]"] == 0 and max(ids.values()) < len(rows)
