"""Blocks of a model are found in the names of its tensors."""

import pytest

from fusion_jax.checkpoints.block_names import comes_first, place_of, stacks_of

INNER = ("query", "key", "value", "output")


def names_of(stack: str, count: int, inner=INNER) -> list[str]:
    return [f"{stack}.{i}.{part}.weight" for i in range(count) for part in inner]


@pytest.mark.parametrize(
    "stack",
    [
        "model.layers",
        "h",
        "transformer.h",
        "bert.encoder.layer",
        "0.auto_model.encoder.layer",
        "trunk.stages",
    ],
)
def test_a_stack_is_what_stands_before_numbers_that_run_from_zero(stack):
    names = ["embeddings.weight", *names_of(stack, 3), "classifier.0.weight"]
    assert stacks_of([*names, "classifier.1.weight"]) == {stack: 3}


def test_the_outermost_number_counts():
    names = names_of("decoder.block", 2, [f"layer.{j}.wi" for j in range(3)])
    names += names_of("model.layers", 2, [f"mlp.experts.{j}.up" for j in range(4)])
    stacks = stacks_of(names)
    assert stacks == {"decoder.block": 2, "model.layers": 2}
    place = place_of("decoder.block.1.layer.2.wi.weight", stacks)
    assert place == ("decoder.block", 1, "layer.2.wi.weight")


def test_numbers_with_gaps_or_few_tensors_are_no_blocks():
    assert stacks_of(names_of("model.layers", 3)[4:]) == {}
    assert stacks_of(["head.0.weight", "head.1.weight", "head.2.weight"]) == {}


def test_embeddings_come_first_and_norms_and_heads_last():
    first = (
        "model.embed_tokens.weight",
        "wpe.weight",
        "bert.embeddings.LayerNorm.weight",
        "shared.weight",
    )
    last = ("model.norm.weight", "ln_f.bias", "lm_head.weight", "embed_out.weight")
    assert all(comes_first(name) for name in first)
    assert not any(comes_first(name) for name in (*last, "classifier.weight"))
