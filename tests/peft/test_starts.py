"""What leaves start from, and how many there are: T5's counts by shapes alone."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax import trees
from fusion_jax.peft import PeftConfig, init_module
from tests.peft.hosts import host_of

SIZES = {  # width, layers of each stack, inner width of attention, feed-forward
    "small": (512, 8, 384, 1024),
    "base": (768, 12, 768, 2048),
    "large": (1024, 24, 1024, 2816),
    "xl": (2048, 24, 2048, 5120),
}
COUNTS = {
    "lora": (344_064, 884_736, 2_359_296, 4_718_592),
    "houlsby_16": (1_065_984, 3_578_112, 12_687_360, 50_540_544),
    "houlsby_32": (541_184, 1_807_488, 6_392_832, 25_368_576),
    "pfeiffer_16": (532_992, 1_789_056, 6_343_680, 25_270_272),
    "prefix": (552_960, 1_658_880, 4_423_680, 8_847_360),
    "prefix_mlp": (10_289_664, 29_617_152, 77_311_488, 154_621_440),
    "compacter": (50_752, 114_112, 304_192, 608_320),
    "compacter++": (25_408, 57_088, 152_128, 304_192),
    "prompt": (51_200, 76_800, 102_400, 204_800),
    "ia3": (34_816, 104_448, 282_624, 540_672),
}
CONFIGS = {
    "lora": PeftConfig(rank=8),
    "houlsby_16": PeftConfig(kind="adapter"),
    "houlsby_32": PeftConfig(kind="adapter", reduction_factor=32),
    "pfeiffer_16": PeftConfig(kind="adapter", place="pfeiffer"),
    "prefix": PeftConfig(kind="prefix"),
    "prefix_mlp": PeftConfig(kind="prefix", mlp_width=512),
    "compacter": PeftConfig(kind="compacter"),
    "compacter++": PeftConfig(kind="compacter", place="pfeiffer"),
    "prompt": PeftConfig(kind="prompt"),
    "ia3": PeftConfig(kind="ia3"),
}
NORMS = (21_504, 47_616, 124_928, 249_856)


def t5_of(size):
    """T5 v1.1 as shapes: no biases, gate, up and down, a norm before every block."""
    width, layers, inner, wide = SIZES[size]
    shapes = {"encoder/embeddings/word/embedding": (100, width)}
    for stack, blocks in (
        ("encoder", ("attention",)),
        ("decoder", ("attention", "cross_attention")),
    ):
        for i in range(layers):
            layer = f"{stack}/layer_{i}"
            for block in blocks:
                for name in ("query", "key", "value"):
                    shapes[f"{layer}/{block}/{name}/kernel"] = (width, inner)
                shapes[f"{layer}/{block}/output/kernel"] = (inner, width)
                shapes[f"{layer}/{block}/norm/scale"] = (width,)
            for name in ("gate", "up"):
                shapes[f"{layer}/mlp/{name}/kernel"] = (width, wide)
            shapes[f"{layer}/mlp/down/kernel"] = (wide, width)
            shapes[f"{layer}/mlp/norm/scale"] = (width,)
        shapes[f"{stack}/final_norm/scale"] = (width,)
    return trees.unflatten(
        {n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in shapes.items()}
    )


def count(config, host):
    shapes = jax.eval_shape(
        lambda host, key: init_module(config, host, key).params,
        host,
        jax.random.key(0),
    )
    return trees.num_params(shapes)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("size", ["small", "base"])
def test_a_module_of_t5_has_as_many_parameters_as_are_published(name, size):
    expected = COUNTS[name][list(SIZES).index(size)]
    assert count(CONFIGS[name], t5_of(size)) == expected


@pytest.mark.parametrize("name", ["lora", "houlsby_16", "compacter", "ia3"])
def test_a_module_of_the_large_t5_has_too(name):
    for size in ("large", "xl"):
        expected = COUNTS[name][list(SIZES).index(size)]
        assert count(CONFIGS[name], t5_of(size)) == expected


def test_trained_norms_are_all_norms():
    alone = count(PeftConfig(kind="ia3"), t5_of("small"))
    with_norms = count(PeftConfig(kind="ia3", train_norms=True), t5_of("small"))
    assert with_norms - alone == NORMS[0]


def test_bitfit_says_that_t5_has_no_biases():
    with pytest.raises(ValueError, match="t5 has no biases"):
        count(PeftConfig(kind="bitfit"), t5_of("small"))


def start(name, path, **options):
    module = init_module(
        PeftConfig(rank=200, targets=(path,), init=name, **options),
        trees.unflatten(
            {
                f"encoder/layer_0/{path}/kernel": np.zeros((300, 250), np.float32),
                "encoder/layer_0/attention/query/kernel": np.zeros((300, 250)),
            }
        ),
        jax.random.key(0),
    )
    own = module.params["encoder"]["layer_0"]["mlp"]["up"]["lora"]
    return np.asarray(own["a"]), np.asarray(own["b"])


@pytest.mark.parametrize(
    "name, bound",
    [("default", 1 / math.sqrt(300)), ("he", math.sqrt(6 / 300)), ("random", None)],
)
def test_lora_starts_uniform_in_its_bound(name, bound):
    a, b = start(name, "mlp/up")
    if name == "random":
        bound = 1 / math.sqrt(300)
        assert np.abs(b).max() == pytest.approx(1 / math.sqrt(200), rel=1e-3)
    else:
        assert not b.any()
    assert np.abs(a).max() == pytest.approx(bound, rel=1e-3)
    assert a.std() == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_gaussian_lora_starts_from_one_over_the_rank():
    a, b = start("gaussian", "mlp/up")
    assert a.std() == pytest.approx(1 / 200, rel=0.02) and not b.any()


@pytest.mark.parametrize(
    "place, init, down, up",
    [
        # Cut at two standard deviations a normal has 0.8796 of its own.
        ("houlsby", "default", 0.8796e-3, 0.8796e-3),
        ("pfeiffer", "default", 0.02, 0.02),
        ("parallel", "default", 1 / math.sqrt(3 * 512), 0),
        ("houlsby", "normal", 0.02, 0.02),
    ],
)
def test_adapters_start_as_their_place_says(place, init, down, up):
    config = PeftConfig(
        kind="adapter", place=place, init=init, targets=("encoder/layer_0/mlp/down",)
    )
    module = init_module(config, zeros(t5_of("small")), jax.random.key(1))
    own = module.params["encoder"]["layer_0"]["mlp"]["down"]["adapter"]
    assert np.std(own["down"]["kernel"]) == pytest.approx(down, rel=0.03)
    assert np.std(own["up"]["kernel"]) == pytest.approx(up, rel=0.03)
    assert not own["down"]["bias"].any() and not own["up"]["bias"].any()


def test_compacters_start_as_their_authors_or_as_adapterhub_have_it():
    host = t5_of("small")
    at = ("encoder/layer_0/mlp/down",)
    for init, shape, std in (
        ("default", "uniform", math.sqrt(2) * math.sqrt(2 / 129)),
        ("xavier_normal", "normal", math.sqrt(2 / 129)),
    ):
        config = PeftConfig(kind="compacter", init=init, targets=at)
        module = init_module(config, zeros(host), jax.random.key(0))
        own = module.params["encoder"]["layer_0"]["mlp"]["down"]["compacter"]
        left = np.asarray(own["down"]["left"])
        assert left.std() == pytest.approx(std, rel=0.1), shape
        rule = np.asarray(module.params["compacter"]["rule"])
        assert rule.shape == (4, 4, 4) and rule.std() == pytest.approx(1e-4, rel=0.4)


def test_a_leaf_keeps_its_start_whatever_other_leaves_there_are():
    few = init_module(PeftConfig(targets=("query",)), host_of(), jax.random.key(0))
    more = init_module(PeftConfig(), host_of(), jax.random.key(0))
    others = trees.flatten(more.params)
    for name, leaf in trees.flatten(few.params).items():
        np.testing.assert_array_equal(leaf, others[name])


def test_a_prompt_from_the_vocabulary_has_rows_of_the_table():
    table = np.asarray(host_of()["encoder"]["embeddings"]["word"]["embedding"])
    config = PeftConfig(kind="prompt", length=4, init="vocabulary")
    module = init_module(config, host_of(), jax.random.key(0))
    rows = np.asarray(
        trees.flatten(module.params)["encoder/embeddings/word/prompt/rows"]
    )
    assert all((table == row).all(-1).any() for row in rows)
    plain = init_module(PeftConfig(kind="prompt"), host_of(), jax.random.key(0))
    rows = np.asarray(jax.tree.leaves(plain.params)[0])
    assert rows.shape == (100, 16) and 0.45 < np.abs(rows).max() <= 0.5


def zeros(shapes):
    """Arrays that take no memory of their own, for the layers that are not read."""
    return jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), shapes)
