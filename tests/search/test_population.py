"""Population evaluation: every way of running gives the same readouts."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax import trees, weighted_average
from fusion_jax.evaluation.readout import readout
from fusion_jax.models import EncoderConfig, build_model
from fusion_jax.search.points import make_points
from fusion_jax.search.population import (
    compiled_memory,
    group_by_shape,
    make_population,
)

CONFIG = EncoderConfig.from_hf(
    {
        "model_type": "bert",
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 32,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "pad_token_id": 0,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
    }
)
EMBEDDINGS = r"encoder/embeddings/(word|position|token_type)/.*"


def batches(kind, lengths=(8, 8, 12), size=4, seed=0):
    random = np.random.default_rng(seed)
    made, row = [], 0
    for number, length in enumerate(lengths):
        real = size - (number == len(lengths) - 1)
        batch = {
            "input_ids": random.integers(1, 50, (size, length)),
            "attention_mask": (
                np.arange(length) < random.integers(3, length + 1, (size, 1))
            ),
            "token_type_ids": np.zeros((size, length)),
            "index": np.where(np.arange(size) < real, row + np.arange(size), -1),
            "tags": random.integers(-1, 3, (size, length)),
            "label": random.integers(0, 3, size),
            "labels": random.integers(0, 2, (size, 3)),
            "label_mask": np.ones(3),
        }
        batch = {k: v.astype(np.int32) for k, v in batch.items()}
        batch["mask"] = (batch["index"] >= 0).astype(np.float32)
        made.append(batch)
        row += real
    return made


def models(kind, count=3, shared=EMBEDDINGS):
    model = build_model(CONFIG, kind, 3)
    base = model.init(jax.random.key(0))
    made = {}
    for k in range(count):
        other = model.init(jax.random.key(k + 1))
        frozen, _ = trees.partition(base, shared)
        _, trained = trees.partition(other, shared)
        made[f"expert_{k}"] = trees.combine(frozen, trained)
    return model, made


def population(kind="single_label", shared=EMBEDDINGS, groups=((".*", 0),), **options):
    model, experts = models(kind, shared=shared)
    points = make_points(experts, shared=[shared], groups=groups)
    return make_population(
        model, functools.partial(readout, kind), points, batches(kind), **options
    )


CANDIDATES = np.random.default_rng(1).normal(0.3, 0.5, (5, 3)).astype(np.float32)


@functools.cache
def by_loop(kind):
    """What the simplest way says, which every other is held against."""
    with jax.default_matmul_precision("highest"):
        return population(kind, way="loop")(CANDIDATES)


WAYS = [
    {"way": "map"},
    {"way": "layers", "chunk": 1},
    {"way": "layers", "chunk": 2},
    {"way": "layers", "chunk": 5},
    {"way": "map", "chunk": 3},
    {"way": "layers", "devices": 2, "chunk": 4},
    {"way": "map", "devices": 2},
]


def kinds_and_ways():
    """Every way for one kind; for the others one of each sort, and the rest if slow."""
    for number, options in enumerate(WAYS):
        for kind in ("single_label", "multi_label", "token"):
            fast = kind == "single_label" or number in (2, 4)
            marks = () if fast else pytest.mark.slow
            yield pytest.param(kind, options, marks=marks, id=f"{kind}-{options}")


@pytest.mark.parametrize(("kind", "options"), list(kinds_and_ways()))
def test_all_ways_agree(kind, options):
    reference = by_loop(kind)
    with jax.default_matmul_precision("highest"):
        other = population(kind, **options)(CANDIDATES)
    assert reference.keys() == other.keys()
    for name in reference:
        assert reference[name].shape == other[name].shape
        np.testing.assert_allclose(reference[name], other[name], rtol=1e-5, atol=1e-5)


def test_the_readouts_are_those_of_the_merged_model():
    model, experts = models("single_label")
    points = make_points(experts, shared=[EMBEDDINGS])
    found = make_population(
        model,
        functools.partial(readout, "single_label"),
        points,
        batches("single_label"),
    )(CANDIDATES)
    stack = trees.stack(list(experts.values()))
    apply = jax.jit(model.apply)
    for p, row in enumerate(CANDIDATES):
        merged = weighted_average(stack, jnp.asarray(row))
        frozen, _ = trees.partition(experts["expert_0"], EMBEDDINGS)
        _, trained = trees.partition(merged, EMBEDDINGS)
        for batch in batches("single_label"):
            expected = readout(
                "single_label",
                apply(trees.combine(frozen, trained), batch),
                batch,
            )
            real = batch["index"] >= 0
            np.testing.assert_allclose(
                found["logits"][p][batch["index"][real]],
                np.asarray(expected["logits"])[real],
                rtol=1e-5,
                atol=1e-5,
            )


def test_a_group_moves_its_own_leaves_alone():
    groups = (("head/.*", 1), (".*", 0))
    evaluate = population(groups=groups)
    rows = np.stack([CANDIDATES, CANDIDATES], axis=1)
    np.testing.assert_allclose(
        evaluate(rows)["logits"],
        population()(CANDIDATES)["logits"],
        rtol=1e-5,
        atol=1e-5,
    )
    rows[:, 1] *= 2
    assert (
        np.abs(evaluate(rows)["logits"] - population()(CANDIDATES)["logits"]).max()
        > 1e-3
    )


def test_shared_lower_layers_run_once_and_change_nothing():
    lower = r"encoder/(embeddings|layer_0|layer_1)/.*"
    for way in ("map", "layers"):
        fast = population(shared=lower, way=way, chunk=2)
        slow = population(shared=lower, way="loop")
        assert all(carry is not None for carry in fast.carries)
        np.testing.assert_allclose(
            fast(CANDIDATES)["logits"], slow(CANDIDATES)["logits"], rtol=1e-5, atol=1e-5
        )


def test_temporaries_do_not_grow_with_the_population():
    evaluate = population(way="layers", chunk=2)
    memory = compiled_memory(evaluate)
    for count in (2, 64):
        evaluate(np.repeat(CANDIDATES[:1], count, axis=0))
    assert compiled_memory(evaluate) == memory
    more = compiled_memory(population(way="layers", chunk=8))
    assert more["temporaries"] > memory["temporaries"]


@pytest.mark.parametrize("chunk", [1, 4])
def test_temporaries_do_not_grow_with_the_depth(chunk):
    """One stage's merge and activations at a time: merges wait for their turn, buffers
    are used again. A schedule that overlaps the stages would lose both."""

    def temporaries(depth):
        # Wide enough that weights outweigh the buffers of a few bytes.
        config = replace(
            CONFIG, num_layers=depth, hidden_size=128, intermediate_size=512
        )
        model = build_model(config, "single_label", 3)
        experts = {str(k): model.init(jax.random.key(k)) for k in range(3)}
        points = make_points(experts, shared=[], groups=((".*", 0),))
        evaluate = make_population(
            model,
            functools.partial(readout, "single_label"),
            points,
            batches("single_label"),
            way="layers",
            chunk=chunk,
        )
        return compiled_memory(evaluate)["temporaries"]

    assert temporaries(9) < 1.2 * temporaries(3)


def test_one_program_serves_all_generations():
    model, experts = models("single_label")
    traces = []

    def counted(outputs, batch):
        traces.append(batch["input_ids"].shape)
        return readout("single_label", outputs, batch)

    evaluate = make_population(
        model,
        counted,
        make_points(experts, shared=[EMBEDDINGS]),
        batches("single_label"),
        way="layers",
        chunk=2,
    )
    evaluate(CANDIDATES[:1])
    first = len(traces)
    assert first >= 1
    for count in (2, 3, 9):
        assert len(evaluate(np.repeat(CANDIDATES[:1], count, 0))["loss"]) == count
    assert len(traces) == first


def test_batches_of_one_shape_are_stacked():
    groups = group_by_shape(batches("single_label"))
    assert [g["input_ids"].shape for g in groups] == [(2, 4, 8), (1, 4, 12)]


@pytest.mark.parametrize(
    "options,message",
    [
        ({"way": "fast"}, "'fast' is not one of auto, loop, map, layers"),
        ({"devices": 99}, "99 asked for"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        population(**options)


def test_coefficients_that_do_not_fit_name_the_points():
    with pytest.raises(ValueError, match=r"expected \[P, 3\].*expert_0, expert_1"):
        population()(np.ones((2, 4)))


def test_points_refuse_shared_leaves_that_were_trained():
    _, experts = models("single_label")
    with pytest.raises(ValueError, match=r"head/classifier/kernel \(expert_1\)"):
        make_points(experts, shared=["head/.*"])


def test_points_refuse_values_that_are_not_finite_by_name():
    _, experts = models("single_label")
    experts["expert_1"] = trees.map_with_names(
        lambda name, x: (
            x.at[0].set(jnp.nan) if name == "encoder/layer_0/mlp/up/bias" else x
        ),
        experts["expert_1"],
    )
    with pytest.raises(ValueError, match="expert_1: encoder/layer_0/mlp/up/bias"):
        make_points(experts)
