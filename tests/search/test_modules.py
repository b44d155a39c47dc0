"""A search over modules: candidates are the modules they stand for, on one host."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax import trees
from fusion_jax.evaluation.readout import readout
from fusion_jax.models import EncoderConfig, build_model
from fusion_jax.peft import Module, PeftConfig, attach, init_module, merge_into
from fusion_jax.search.modules import module_of, module_points
from fusion_jax.search.population import compiled_memory, make_population

CONFIG = EncoderConfig(
    family="bert",
    vocab_size=31,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    intermediate_size=32,
    max_positions=12,
)
MODEL = build_model(CONFIG, "single_label", 3)
# Weights of trained size, so that logits are too.
HOST = trees.map_with_names(
    lambda name, x: 15 * x if x.ndim > 1 else x, MODEL.init(jax.random.key(0))
)
APPLY = jax.jit(MODEL.apply)
WEIGHTS = np.array(
    [[1, 0, 0], [0, 0, 1], [0.2, 0.5, 0.3], [1.3, -0.7, 0.4]], np.float32
)


def moved(config, seed):
    """A module with every leaf at random, as if it had been trained."""
    start = init_module(config, HOST, jax.random.key(seed))
    key = jax.random.key(seed + 100)

    def move(name, leaf):
        own = jax.random.fold_in(key, len(name) * 1000 + leaf.size)
        return leaf + 0.3 * jax.random.normal(own, leaf.shape)

    return start._replace(params=trees.map_with_names(move, start.params))


def batches(rows=6, length=8):
    rng = np.random.default_rng(0)
    ids = rng.integers(1, CONFIG.vocab_size, (rows, length)).astype(np.int32)
    mask = (np.arange(length) < rng.integers(3, length + 1, (rows, 1))).astype(np.int32)
    label = rng.integers(0, 3, rows).astype(np.int32)
    whole = {"input_ids": ids, "attention_mask": mask, "label": label}
    whole |= {"mask": np.ones(rows, np.int32), "index": np.arange(rows, dtype=np.int32)}
    return [{name: x[i : i + 3] for name, x in whole.items()} for i in (0, 3)]


def logits_of(config, points, chunk, way="layers"):
    population = make_population(
        attach(MODEL, config),
        lambda outputs, batch: {"logits": outputs["logits"]},
        points,
        batches(),
        chunk=chunk,
        way=way,
    )
    return population(WEIGHTS)["logits"], population


def plain(params):
    return np.concatenate([APPLY(params, batch)["logits"] for batch in batches()])


MIXED = {
    "small": PeftConfig(rank=2, alpha=6, replaces=("head/.*",)),
    "large": PeftConfig(rank=5, alpha=4, use_rslora=True, replaces=("head/.*",)),
    "elsewhere": PeftConfig(targets=("value|mlp/up",), rank=1, replaces=("head/.*",)),
}


@pytest.mark.parametrize(("chunk", "way"), [(1, "layers"), (4, "layers"), (1, "map")])
def test_updates_of_other_ranks_scalings_and_layers_are_summed_exactly(chunk, way):
    modules = {name: moved(config, k) for k, (name, config) in enumerate(MIXED.items())}
    config, points = module_points(HOST, modules)
    with jax.default_matmul_precision("highest"):
        found, _ = logits_of(config, points, chunk, way)
        for row, logits in zip(WEIGHTS, found, strict=True):
            np.testing.assert_allclose(logits, plain(summed(modules, row)), atol=2e-5)


def summed(modules, weights):
    """The host with the weighted sum of all updates; heads are summed themselves."""
    every = [merged(module) for module in modules.values()]

    def leaf(name, host):
        start = 0 if name.startswith("head/") else host
        moves = [w * (own[name] - start) for w, own in zip(weights, every, strict=True)]
        return start + sum(moves)

    return trees.map_with_names(leaf, HOST)


def merged(module):
    return trees.flatten(merge_into(HOST, module))


@pytest.mark.parametrize("rule", ["exact", "leaves"])
def test_all_weight_on_one_module_is_that_module(rule):
    same = PeftConfig(rank=2, alpha=6, replaces=("head/.*",))
    modules = {name: moved(same, seed) for seed, name in enumerate("abc")}
    config, points = module_points(HOST, modules, rule=rule)
    found, _ = logits_of(config, points, 2)
    np.testing.assert_allclose(
        found[1], plain(merge_into(HOST, modules["c"])), atol=2e-5
    )


def test_the_leaf_rule_has_cross_terms_that_the_exact_one_has_not():
    same = PeftConfig(rank=2)
    modules = {name: moved(same, seed) for seed, name in enumerate("abc")}
    exact, _ = logits_of(*module_points(HOST, modules), 1)
    leaves, _ = logits_of(*module_points(HOST, modules, rule="leaves"), 1)
    assert np.abs(exact[2] - leaves[2]).max() > 1e-2


def test_vectors_that_scale_activations_are_averaged_as_leaves():
    modules = {n: moved(PeftConfig(kind="ia3"), seed) for seed, n in enumerate("abc")}
    config, points = module_points(HOST, modules, rule="leaves")
    found, _ = logits_of(config, points, 3)
    mean = jax.tree.map(
        lambda *x: sum(w * y for w, y in zip(WEIGHTS[2], x, strict=True)),
        *(module.params for module in modules.values()),
    )
    merged = merge_into(HOST, Module(config, mean, {}))
    np.testing.assert_allclose(found[2], plain(merged), atol=2e-5)


def test_the_module_of_a_candidate_computes_what_the_candidate_does():
    modules = {name: moved(config, k) for k, (name, config) in enumerate(MIXED.items())}
    config, points = module_points(HOST, modules)
    found, _ = logits_of(config, points, 4)
    module = module_of(config, points, WEIGHTS[3][None], {})
    np.testing.assert_allclose(found[3], plain(merge_into(HOST, module)), atol=2e-5)


def test_layers_have_weights_of_their_own_where_groups_say_so():
    modules = {n: moved(PeftConfig(rank=2), seed) for seed, n in enumerate("ab")}
    groups = ((r"encoder/layer_0/.*", 0), (".*", 1))
    config, points = module_points(HOST, modules, groups=groups)
    row = np.array([[1, 0], [0, 1]], np.float32)
    module = module_of(config, points, row, {})
    whole = merged(module)
    for layer, name in enumerate("ab"):
        kernel = f"encoder/layer_{layer}/attention/query/kernel"
        expected = merged(modules[name])[kernel]
        np.testing.assert_allclose(whole[kernel], expected, atol=1e-6)


def test_a_chunk_holds_no_merged_kernels():
    # Of 64 candidates: kernels of one layer would be 64 times those of the host.
    wide = CONFIG.__class__(**{**CONFIG.__dict__, "intermediate_size": 4096})
    model = build_model(wide, "single_label", 3)
    host = model.init(jax.random.key(0))
    config = PeftConfig(targets=("mlp/up",), rank=1)
    modules = {
        n: init_module(config, host, jax.random.key(seed))
        for seed, n in enumerate("ab")
    }
    config, points = module_points(host, modules)
    one_row = [{k: v[:1, :2] if v.ndim > 1 else v[:1] for k, v in batches()[0].items()}]
    population = make_population(
        attach(model, config),
        lambda outputs, batch: {"logits": outputs["logits"]},
        points,
        one_row,
        chunk=64,
    )
    copies = 64 * 16 * 4096 * 4
    activations = 64 * 2 * 4096 * 4
    assert compiled_memory(population)["temporaries"] < copies / 2
    assert compiled_memory(population)["temporaries"] > activations


def test_what_cannot_stand_side_by_side_is_named():
    modules = {
        "low": moved(PeftConfig(), 0),
        "dora": moved(PeftConfig(use_dora=True), 1),
        "scales": moved(PeftConfig(kind="ia3"), 2),
    }
    with pytest.raises(ValueError, match=r"scales is of kind ia3; dora has magnitudes"):
        module_points(HOST, modules)
    with pytest.raises(ValueError, match="dora, scales have another config than low"):
        module_points(HOST, modules, rule="leaves")
    with pytest.raises(ValueError, match="rule: 'sum' is not one of exact, leaves"):
        module_points(HOST, modules, rule="sum")


def test_values_that_are_not_finite_are_named():
    good = moved(PeftConfig(), 0)
    bad = good._replace(
        params=jax.tree.map(lambda x: x.at[0].set(jnp.nan), good.params)
    )
    with pytest.raises(ValueError, match=r"bad: .*lora"):
        module_points(HOST, {"good": good, "bad": bad})


def test_the_readout_of_a_task_serves_candidates_of_modules():
    modules = {n: moved(PeftConfig(rank=2), seed) for seed, n in enumerate("ab")}
    config, points = module_points(HOST, modules)
    population = make_population(
        attach(MODEL, config),
        lambda outputs, batch: readout("single_label", outputs, batch),
        points,
        batches(),
        chunk=2,
    )
    assert all(len(x) == 3 for x in population(WEIGHTS[:3, :2]).values())
