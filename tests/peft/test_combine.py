"""Merging modules: updates are added; what peft is known to get wrong is right here."""

import warnings
from dataclasses import replace

import jax
import numpy as np
import pytest

from fusion_jax import trees
from fusion_jax.peft import Module, PeftConfig, init_module, merge_into
from fusion_jax.peft.combine import combine
from fusion_jax.peft.combine_table import COMBINES

QUERY, VALUE = (f"encoder/layer_0/attention/{name}" for name in ("query", "value"))
DOWN = "encoder/layer_0/mlp/down"
WIDTH, INNER = 8, 12
SHAPES = {
    QUERY: (WIDTH, WIDTH),
    VALUE: (WIDTH, WIDTH),
    "encoder/layer_0/attention/key": (WIDTH, WIDTH),
    DOWN: (INNER, WIDTH),
}
LOW_RANK = [name for name, record in COMBINES.items() if record.update]
SCALES = [name for name, record in COMBINES.items() if "ia3" in record.leaf_kinds]


def host(seed=7):
    random = np.random.default_rng(seed)
    leaves = {}
    for path, shape in SHAPES.items():
        leaves[f"{path}/kernel"] = random.normal(size=shape).astype(np.float32)
        leaves[f"{path}/bias"] = random.normal(size=shape[1]).astype(np.float32)
    leaves["head/classifier/kernel"] = random.normal(size=(WIDTH, 3)).astype(np.float32)
    return trees.unflatten(leaves)


def module(seed, about=None, **options):
    """A module whose leaves are all drawn: nothing is a no-op."""
    options = {"kind": "lora", "rank": 3, "alpha": 5.0, **options}
    if options["kind"] != "lora":
        del options["rank"], options["alpha"]
    made = init_module(PeftConfig(**options), host(), jax.random.key(0))
    random = np.random.default_rng(seed)
    drawn = {
        name: (0.3 * random.normal(size=x.shape) + ("/ia3/" in name)).astype(np.float32)
        for name, x in trees.flatten(made.params).items()
    }
    return Module(made.config, trees.unflatten(drawn), about or {})


def updates(one):
    """Layer path -> what the module adds to its kernel."""
    whole, given = trees.flatten(merge_into(host(), one)), trees.flatten(host())
    return {
        name: np.asarray(whole[name], np.float64) - given[name]
        for name in given
        if np.abs(np.asarray(whole[name]) - given[name]).max() > 0
    }


def assert_updates(one, expected, atol=2e-6):
    found = updates(one)
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], atol=atol, err_msg=name)


def summed(modules, weights):
    total = {}
    for one, weight in zip(modules, weights, strict=True):
        for name, change in updates(one).items():
            total[name] = total.get(name, 0) + weight * change
    return total


def options_of(method):
    return {"key": jax.random.key(1)} if COMBINES[method].key else {}


@pytest.mark.parametrize("method", ["concatenate", "svd"])
@pytest.mark.parametrize("weights", [(0.5, 0.5), (1.0, -1.0), (0.7, 1.9)])
def test_exact_ways_add_updates_of_any_rank_and_scaling(method, weights):
    modules = [module(1), module(2, rank=2, alpha=7.0, use_rslora=True)]
    options = {"rank": 5} if method == "svd" else {}
    merged = combine(method, modules, weights, **options)
    assert_updates(merged.module, summed(modules, weights))
    assert all(error < 1e-6 for error in merged.lost.values())


@pytest.mark.parametrize("method", LOW_RANK)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"alpha": 16.0, "rank": 4, "use_rslora": True},
        {"use_dora": True},
        {"init": "pissa"},
        {"rank_pattern": ((QUERY, 2),), "alpha_pattern": ((VALUE, 9.0),)},
        {"replaces": ("head/.*",)},
    ],
)
def test_weights_one_and_zero_return_the_module_itself(method, options):
    first, second = module(1, **options), module(2)
    for modules, weights in (([first, second], [1, 0]), ([first], [1.0])):
        merged = combine(method, modules, weights, **options_of(method))
        assert merged.module is first


@pytest.mark.parametrize("kind", ["ia3"])
@pytest.mark.parametrize("method", SCALES)
def test_weights_one_and_zero_return_scales_themselves(method, kind):
    modules = [module(1, kind=kind), module(2, kind=kind)]
    merged = combine(method, modules, [1, 0], **options_of(method))
    assert merged.module is modules[0]


@pytest.mark.parametrize("method", ["concatenate", "svd", "dare", "linear_factors"])
def test_one_module_is_scaled_by_its_weight(method):
    first = module(1, alpha=16.0, rank=4, use_rslora=True)
    merged = combine(method, [first, module(2)], [0.5, 0], **options_of(method))
    assert_updates(merged.module, summed([first], [0.5]))


def test_layers_that_one_module_lacks_have_no_update_there():
    modules = [module(1, targets=("query",)), module(2, targets=("query", "down"))]
    merged = combine("concatenate", modules, [1.0, 2.0]).module
    assert_updates(merged, summed(modules, [1.0, 2.0]))
    assert merged.config.rank_pattern and merged.config.alpha_pattern


def test_a_result_with_ranks_of_its_own_is_read_again():
    modules = [module(1, rank_pattern=((QUERY, 2),)), module(2)]
    merged = combine("svd", modules, [0.5, 0.5], energy=0.999).module
    again = merged._replace(config=PeftConfig.from_json(merged.config.to_json()))
    assert_updates(again, updates(merged), atol=0)
    twice = combine("concatenate", [again, module(3)], [1.0, 1.0]).module
    assert_updates(twice, summed([merged, module(3)], [1.0, 1.0]))


def test_pefts_rule_is_not_the_sum():
    modules = [module(1), module(2)]
    found = updates(combine("linear_factors", modules, [1, -1]).module)
    expected = summed(modules, [1, -1])
    for name in expected:
        error = np.linalg.norm(found[name] - expected[name])
        assert error > 0.5 * np.linalg.norm(expected[name])


@pytest.mark.parametrize("method", ["ties", "dare", "dare_ties", "knots"])
def test_merges_of_updates_work_on_modules(method):
    modules = [module(1), module(2, rank=2)]
    merged = combine(
        method, modules, [0.6, 0.4], density=1.0, rank=8, **options_of(method)
    )
    if method == "dare":  # with nothing dropped it is the sum
        assert_updates(merged.module, summed(modules, [0.6, 0.4]), atol=1e-5)
    assert set(merged.lost) == {QUERY, VALUE}
    equal = combine(
        method, [modules[0]] * 2, [0.5, 0.5], density=1.0, **options_of(method)
    )
    assert_updates(equal.module, updates(modules[0]), atol=1e-5)


def test_a_cut_says_what_it_lost():
    modules = [module(1), module(2)]
    merged = combine("svd", modules, [1, 1], rank=2)
    expected, found = summed(modules, [1, 1]), updates(merged.module)
    for path, error in merged.lost.items():
        name = f"{path}/kernel"
        off = np.linalg.norm(found[name] - expected[name])
        assert error == pytest.approx(off / np.linalg.norm(expected[name]), abs=1e-5)


def test_masks_differ_between_layers_and_not_between_calls():
    modules = [module(1), module(2)]

    def merged(seed):
        key = jax.random.key(seed)
        return updates(combine("dare", modules, [1, 1], key=key, density=0.5).module)

    np.testing.assert_array_equal(
        merged(1)[f"{QUERY}/kernel"], merged(1)[f"{QUERY}/kernel"]
    )
    assert np.abs(merged(1)[f"{QUERY}/kernel"] - merged(2)[f"{QUERY}/kernel"]).max() > 0


def test_scales_move_by_their_changes():
    one, two = module(1, kind="ia3"), module(2, kind="ia3")
    a, b = trees.flatten(one.params), trees.flatten(two.params)
    merged = trees.flatten(combine("linear", [one, two], [1.0, 1.0]).module.params)
    plain = trees.flatten(combine("linear_factors", [one, two], [1, 1]).module.params)
    for name, leaf in merged.items():
        np.testing.assert_allclose(leaf, a[name] + b[name] - 1, atol=1e-6)
        np.testing.assert_allclose(plain[name], a[name] + b[name], atol=1e-6)


def test_a_scale_that_one_module_lacks_is_one():
    whole = module(1, kind="ia3")
    part = module(2, kind="ia3", targets=("key",))
    merged = trees.flatten(combine("linear", [whole, part], [0.5, 0.5]).module.params)
    name = f"{DOWN}/ia3/input_scale"
    expected = 0.5 * trees.flatten(whole.params)[name] + 0.5
    np.testing.assert_allclose(merged[name], expected, atol=1e-6)


def test_heads_move_by_their_changes():
    first = module(1, replaces=("head/.*",))
    second = module(2, replaces=("head/.*",))
    heads = [m.params["head"]["classifier"]["kernel"] for m in (first, second)]
    merged = combine("concatenate", [first, second], [0.3, 0.7]).module
    found = merged.params["head"]["classifier"]["kernel"]
    np.testing.assert_allclose(found, 0.3 * heads[0] + 0.7 * heads[1], atol=1e-6)
    # Weights that do not sum to 1 need the host's own head.
    with pytest.raises(
        ValueError, match=r"head/classifier/kernel .*sum to 2: give the"
    ):
        combine("concatenate", [first, second], [1, 1])
    merged = combine("concatenate", [first, second], [1, 1], host=host()).module
    own = host()["head"]["classifier"]["kernel"]
    np.testing.assert_allclose(
        merged.params["head"]["classifier"]["kernel"],
        heads[0] + heads[1] - own,
        atol=1e-5,
    )
    merged = combine("concatenate", [first, second], [1, 1], leave_out="head/.*")
    assert "head" not in merged.module.params


def test_a_head_of_one_module_needs_its_whole_weight_or_the_host():
    first, second = module(1, replaces=("head/.*",)), module(2)
    merged = combine("concatenate", [first, second], [1.0, 0.5]).module
    np.testing.assert_allclose(
        merged.params["head"]["classifier"]["kernel"],
        first.params["head"]["classifier"]["kernel"],
    )
    with pytest.raises(ValueError, match=r"sum to 0\.5"):
        combine("concatenate", [first, second], [0.5, 0.5])


def test_dora_is_merged_from_the_hosts_kernels_or_refused():
    modules = [module(1, use_dora=True), module(2)]
    with pytest.raises(
        ValueError, match=r"module 0: DoRA .*give|module 0: DoRA .*host="
    ):
        combine("svd", modules, [0.5, 0.5])
    merged = combine("svd", modules, [0.5, 0.5], host=host(), rank=WIDTH)
    assert_updates(merged.module, summed(modules, [0.5, 0.5]), atol=1e-5)
    with pytest.raises(ValueError, match="no low rank"):
        combine("concatenate", modules, [0.5, 0.5], host=host())


def test_every_reason_is_told_at_once():
    wide = Module(PeftConfig(), {}, {"family": "bert", "hidden_size": 8})
    other = Module(PeftConfig(init="pissa"), {}, {"family": "gpt2", "hidden_size": 9})
    with pytest.raises(ValueError) as told:
        combine("ties", [wide, other], [1.0, -1.0], densty=0.2)
    for part in (
        "densty: no option of ties",
        "no weight below 0",
        "family: bert, gpt2",
        "hidden_size: 8, 9",
        "PiSSA",
    ):
        assert part in str(told.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("no", [1.0]), "not one of concatenate, svd"),
        (("concatenate", [0.0, 0.0]), "all weights are 0"),
        (("concatenate", [1.0]), "1 weights for 2 modules"),
        (("concatenate", [1.0, float("nan")]), "not all finite"),
        (("dare", [1.0, 1.0]), "jax.random.key"),
        (("linear", [1.0, 1.0]), "linear does not merge lora; concatenate, svd"),
    ],
)
def test_what_cannot_be_merged_is_refused(arguments, said):
    method, weights = arguments
    with pytest.raises(ValueError, match=said):
        combine(method, [module(1), module(2)], weights)


def test_kinds_and_shapes_do_not_mix():
    with pytest.raises(ValueError, match="kinds lora, ia3"):
        combine("ties", [module(1), module(2, kind="ia3")], [1, 1])
    wide = module(2)
    leaves = trees.flatten(wide.params)
    leaves[f"{QUERY}/lora/a"] = np.zeros((WIDTH + 1, 3), np.float32)
    wide = wide._replace(params=trees.unflatten(leaves))
    with pytest.raises(ValueError, match=rf"{QUERY}: updates of kernels"):
        combine("concatenate", [module(1), wide], [1, 1])


def test_hosts_of_other_weights_are_told():
    hosts = [{"family": "bert", "sha256": s} for s in ("aa", "bb")]
    modules = [module(k, about=about) for k, about in enumerate(hosts)]
    with pytest.warns(UserWarning, match="2 hosts of one shape"):
        merged = combine("concatenate", modules)
    assert merged.module.host == {"family": "bert"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        combine("concatenate", [modules[0]] * 2)


def test_without_weights_it_is_the_mean():
    modules = [module(1), module(2)]
    merged = combine("concatenate", modules).module
    assert_updates(merged, summed(modules, [0.5, 0.5]))


@pytest.mark.parametrize("method", ["concatenate", "svd", "ties", "linear"])
def test_a_merged_module_fits_its_own_config(method):
    kind = "ia3" if method == "linear" else "lora"
    modules = [
        module(1, kind=kind, replaces=("head/.*",)),
        module(2, kind=kind, targets=("key", "down"), replaces=("head/.*",)),
    ]
    for leave_out in (None, "head/.*", r"encoder/.*/down/.*"):
        merged = combine(method, modules, [0.5, 0.5], leave_out=leave_out).module
        fresh = init_module(merged.config, host(), jax.random.key(0))
        found, expected = trees.flatten(merged.params), trees.flatten(fresh.params)
        assert {n: x.shape for n, x in found.items()} == {
            n: x.shape for n, x in expected.items()
        }


def test_training_options_do_not_keep_modules_apart():
    first, second = module(1), module(2)
    second = second._replace(config=replace(second.config, dropout=0.1))
    combine("concatenate", [first, second])
