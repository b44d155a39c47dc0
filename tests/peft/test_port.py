"""Ports between hosts: nothing changes where nothing differs; a reordering is found."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax import trees
from fusion_jax.peft.attach import attach
from fusion_jax.peft.config import PeftConfig
from fusion_jax.peft.module import Module, init_module, with_module
from fusion_jax.peft.port import port
from fusion_jax.peft.port_host import size_of
from fusion_jax.peft.port_maps import NoMeaning
from fusion_jax.peft.port_table import PORTS
from tests.peft import port_hosts as hosts

HEAD = ("head/.*",)
CONFIGS = {
    "lora": PeftConfig("lora", rank=3, alpha=5.0, replaces=HEAD),
    "lora everywhere": PeftConfig(
        "lora",
        targets=("query|key|value|output|up|down",),
        rank=2,
        rank_pattern=(("mlp/up", 3),),
        replaces=HEAD,
    ),
    "dora": PeftConfig("lora", rank=3, use_dora=True),
    "ia3": PeftConfig("ia3"),
    "houlsby": PeftConfig("adapter", bottleneck=5, replaces=HEAD),
    "pfeiffer": PeftConfig("adapter", place="pfeiffer", bottleneck=5),
    "parallel": PeftConfig("adapter", place="parallel", bottleneck=5),
    "compacter": PeftConfig("compacter", bottleneck=8, phm_dim=4),
    "prefix": PeftConfig("prefix", length=3, replaces=HEAD),
    "prompt": PeftConfig("prompt", length=3),
    "bitfit": PeftConfig("bitfit", train_norms=True),
}
FACTORS = ("dora", "ia3", "bitfit")
WIDTHS = ("correlation", "ridge", "subspace")


@pytest.fixture(scope="module")
def params():
    return hosts.params_of(hosts.CONFIG)


@pytest.fixture(scope="module")
def host(params):
    return hosts.host_of(hosts.CONFIG, params, "origin")


@pytest.fixture(scope="module")
def turned(params):
    """(orders, params, host) of the host whose dimensions are reordered."""
    orders, reordered = hosts.permuted(hosts.CONFIG, params)
    return orders, reordered, hosts.host_of(hosts.CONFIG, reordered, "turned")


def module_of(config, params, seed=1):
    """A module whose leaves all say something."""
    module = init_module(config, params, jax.random.key(seed))

    def drawn(name, leaf):
        noise = np.random.default_rng([seed, sum(map(ord, name))]).normal(
            size=np.shape(leaf)
        )
        return jnp.asarray(leaf) + 0.2 * noise.astype(np.float32)

    return module._replace(params=trees.map_with_names(drawn, module.params))


def logits(config, params, module):
    model = attach(hosts.model_of(config), module.config)
    whole = with_module(params, module.params)
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(model.apply)(whole, hosts.batch())["logits"])


def same_leaves(one, other, tolerance=0.0):
    assert trees.mismatches([one.params, other.params]) == []
    for name, leaf in trees.flatten(one.params).items():
        found = trees.flatten(other.params)[name]
        np.testing.assert_allclose(found, leaf, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("method", PORTS)
def test_a_host_gives_its_module_back(name, method, params, host):
    if name in FACTORS and method in ("ridge", "subspace"):
        pytest.skip("one factor a dimension: refused, see below")
    if name == "compacter" and method in ("ridge", "subspace"):
        pytest.skip("bound to its width: refused, see below")
    module = module_of(CONFIGS[name], params)
    ported = port(module, host, host, method)
    same_leaves(module, ported, 1e-5 if method == "subspace" else 0.0)
    assert ported.config == module.config
    assert ported.host == host.record


@pytest.mark.parametrize("name", sorted(set(CONFIGS) - {"compacter"}))
def test_correlation_finds_a_reordered_host_exactly(name, params, host, turned):
    """Each leaf against the order in which the host's dimensions were put."""
    orders, _, target = turned
    module = module_of(CONFIGS[name], params)
    ported = trees.flatten(port(module, host, target, "correlation").params)
    for leaf, value in trees.flatten(module.params).items():
        wanted = reordered_leaf(leaf, np.asarray(value), orders)
        # A difference from the host's own leaf is added to it in another order.
        own = leaf.rpartition("/")[2] in ("bias", "scale", "magnitude")
        np.testing.assert_allclose(
            ported[leaf], wanted, rtol=1e-6 if own else 0, atol=0, err_msg=leaf
        )


def reordered_leaf(leaf, value, orders):
    """A module's leaf on the reordered host, by the meaning of its name."""
    path, _, last = leaf.rpartition("/")
    if path.startswith("head/"):
        return hosts.reordered(leaf, value, orders)
    path = path.removesuffix("/down").removesuffix("/up") if "adapter" in path else path
    part = path.rpartition("/")[2]
    if part in ("lora", "ia3", "adapter", "prefix", "prompt"):
        path = path.rpartition("/")[0]
    inner, outer = hosts.sides(path, orders)
    if last in ("b", "magnitude", "rows", "bias", "scale") and value.shape[-1] > 5:
        return value[..., outer]
    if last == "a" or (last == "input_scale"):
        return value[inner]
    if last == "kernel":
        return value[outer] if "/adapter/down/" in leaf else value[:, outer]
    return value


@pytest.mark.parametrize("name", ("lora everywhere", "houlsby"))
def test_a_module_on_a_reordered_host_is_the_same_function(name, params, host, turned):
    _, reordered, target = turned
    module = module_of(CONFIGS[name], params)
    ported = port(module, host, target, "correlation")
    np.testing.assert_allclose(
        logits(hosts.CONFIG, reordered, ported),
        logits(hosts.CONFIG, params, module),
        atol=2e-5,
    )
    # And the copy is another function: the test above could not pass by itself.
    copied = logits(hosts.CONFIG, reordered, port(module, host, target, "copy"))
    assert np.abs(copied - logits(hosts.CONFIG, params, module)).max() > 1e-2


def test_ridge_finds_a_reordered_host(params, host, turned):
    _, reordered, target = turned
    module = module_of(CONFIGS["lora everywhere"], params)
    ported = port(module, host, target, "ridge", ridge=0.5)
    np.testing.assert_allclose(
        logits(hosts.CONFIG, reordered, ported),
        logits(hosts.CONFIG, params, module),
        atol=2e-4,
    )


@pytest.mark.parametrize("method", ("ridge", "subspace"))
@pytest.mark.parametrize("name", (*FACTORS, "compacter"))
def test_what_a_dense_map_cannot_carry_is_refused(name, method, params, host):
    module = module_of(CONFIGS[name], params)
    with pytest.raises(NoMeaning, match="encoder/layer_3") as caught:
        port(module, host, host, method)
    # All leaves at once.
    assert "encoder/layer_0" in str(caught.value)


def test_a_compacter_moves_by_no_reordering(params, host, turned):
    module = module_of(CONFIGS["compacter"], params)
    with pytest.raises(NoMeaning, match="Kronecker"):
        port(module, host, turned[2], "correlation")


@pytest.mark.parametrize("name", CONFIGS)
def test_the_mean_of_equal_layers_is_the_layer(name, params):
    """A host and module whose layers are equal in pairs, on half the layers."""
    encoder = dict(params["encoder"])
    config = CONFIGS[name]
    module = module_of(config, params)

    def paired(tree):
        own = dict(tree.get("encoder", {}))
        for layer in (1, 3):
            if f"layer_{layer}" in own:
                own[f"layer_{layer}"] = own[f"layer_{layer - 1}"]
        return {**tree, "encoder": own}

    twin = paired({"encoder": encoder})
    source = hosts.host_of(hosts.CONFIG, {**params, **twin}, "twins", states=False)
    half = hosts.shallower(hosts.CONFIG, 2)
    own = {k: v for k, v in encoder.items() if not k.startswith("layer_")}
    own |= {"layer_0": encoder["layer_0"], "layer_1": encoder["layer_2"]}
    target = hosts.host_of(half, {**params, "encoder": own}, "half", states=False)
    module = module._replace(params=paired(module.params))
    for method in ("average", "skip"):
        ported = trees.flatten(port(module, source, target, method).params)
        for leaf, value in ported.items():
            mine = leaf.replace("layer_1", "layer_2")
            np.testing.assert_array_equal(
                value, trees.flatten(module.params)[mine], err_msg=leaf
            )


def test_low_rank_layers_are_averaged_as_products(params, host):
    """The mean of a b, cut to its rank, against the SVD of the full mean in float64."""
    config = PeftConfig("lora", rank=3, alpha=5.0, alpha_pattern=(("layer_1/.*", 2.0),))
    config = dataclasses.replace(config, targets=("query|value",))
    module = module_of(config, params)
    half = hosts.shallower(hosts.CONFIG, 2)
    target = hosts.host_of(half, hosts.params_of(half), "half", states=False)
    ported = port(module, host, target, "average")
    leaves = trees.flatten(module.params)

    def product(tree, path, alpha):
        a, b = (np.asarray(tree[f"{path}/lora/{x}"], np.float64) for x in "ab")
        return alpha / 3 * a @ b

    path = "encoder/layer_{}/attention/query"
    # Layer 0 of the receiver is of layers 0 and 1 of the origin.
    mean = (
        product(leaves, path.format(0), 5.0) + product(leaves, path.format(1), 2.0)
    ) / 2
    u, s, v = np.linalg.svd(mean)
    wanted = (u[:, :3] * s[:3]) @ v[:3]
    found = product(trees.flatten(ported.params), path.format(0), 5.0)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    # And the product of the mean factors is something else.
    means = {
        f"x/lora/{x}": (
            leaves[f"{path.format(0)}/lora/{x}"] + leaves[f"{path.format(1)}/lora/{x}"]
        )
        / 2
        for x in "ab"
    }
    assert np.abs(product(means, "x", 5.0) - wanted).max() > 1e-3


def test_every_mismatch_of_a_copy_is_listed(params, host):
    module = module_of(CONFIGS["houlsby"], params)
    config = dataclasses.replace(
        hosts.shallower(hosts.CONFIG, 3), hidden_size=20, intermediate_size=30
    )
    other = hosts.host_of(config, hosts.params_of(config), "wide", states=False)
    with pytest.raises(trees.TreeMismatch) as caught:
        port(module, host, other)
    told = str(caught.value)
    assert "layers: 4 in origin, 3 in wide" in told
    for layer in range(3):
        for place in ("attention/output", "mlp/down"):
            path = f"encoder/layer_{layer}/{place}"
            assert f"{path}/adapter/down/kernel: shape (16, 5), and the out" in told
            assert f"{path}/adapter/up/bias: shape (16,)" in told
    assert "encoder/layer_3/mlp/down/adapter/up/kernel: wide has no such layer" in told
    assert "'correlation', 'ridge' or 'subspace'" in told


def test_a_table_of_other_words_takes_no_module(params, host):
    config = PeftConfig("lora", targets=("embeddings/word",), rank=2)
    module = module_of(config, params)
    few = dataclasses.replace(hosts.CONFIG, vocab_size=50)
    target = hosts.host_of(few, hosts.params_of(few), "words", states=False)
    for method in ("copy", "correlation"):
        with pytest.raises(trees.TreeMismatch, match=r"word/lora/a: shape \(40, 2\)"):
            port(module, host, target, method)


@pytest.mark.parametrize("method", WIDTHS)
@pytest.mark.parametrize("size", ((24, 3, 36), (8, 1, 12)))
def test_a_module_fits_a_host_of_other_widths(method, size, params, host):
    width, heads, inner = size
    config = dataclasses.replace(
        hosts.shallower(hosts.CONFIG, 2),
        hidden_size=width,
        num_heads=heads,
        intermediate_size=inner,
    )
    own = hosts.params_of(config, seed=3)
    target = hosts.host_of(config, own, "other", states=False)
    target = target._replace(states=hosts.random_states(own))
    host = host._replace(states=hosts.random_states(params))
    for name in ("lora everywhere", "houlsby", "prefix", "prompt"):
        ported = port(module_of(CONFIGS[name], params), host, target, method)
        fresh = init_module(CONFIGS[name], own, jax.random.key(0))
        assert trees.mismatches([fresh.params, ported.params]) == [], name
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(ported.params))


def test_dimensions_that_nothing_stands_for_are_zero(params, host):
    config = dataclasses.replace(hosts.CONFIG, hidden_size=20, intermediate_size=30)
    target = hosts.host_of(config, hosts.params_of(config), "wide")
    module = module_of(CONFIGS["houlsby"], params)
    ported = port(module, host, target, "correlation")
    kernel = ported.params["encoder"]["layer_0"]["mlp"]["down"]["adapter"]["down"]
    rows = np.asarray(kernel["kernel"])
    mine = np.asarray(
        module.params["encoder"]["layer_0"]["mlp"]["down"]["adapter"]["down"]["kernel"]
    )
    empty = ~rows.any(axis=1)
    assert empty.sum() == 4
    np.testing.assert_array_equal(np.sort(rows[~empty].ravel()), np.sort(mine.ravel()))


def test_the_magnitude_of_dora_follows_the_receivers_norms(params, host):
    scaled = trees.map_with_names(
        lambda name, x: 3 * x if name.endswith("query/kernel") else x, params
    )
    target = hosts.host_of(hosts.CONFIG, scaled, "scaled", states=False)
    module = module_of(CONFIGS["dora"], params)
    name = "encoder/layer_2/attention/query/lora/magnitude"
    mine = trees.flatten(module.params)[name]
    relative = port(module, host, target, magnitude="relative")
    np.testing.assert_allclose(
        trees.flatten(relative.params)[name], 3 * mine, rtol=1e-6
    )
    absolute = port(module, host, target, magnitude="absolute")
    np.testing.assert_array_equal(trees.flatten(absolute.params)[name], mine)


def test_own_leaves_of_a_host_move_as_differences(params, host):
    """A trained bias of one host is no bias of another; what it gained is."""
    shifted = trees.map_with_names(
        lambda name, x: x + 0.5 if name.endswith("/bias") else x, params
    )
    target = hosts.host_of(hosts.CONFIG, shifted, "shifted", states=False)
    module = module_of(CONFIGS["bitfit"], params)
    ported = trees.flatten(port(module, host, target, "skip").params)
    copied = trees.flatten(port(module, host, target, "copy").params)
    for name, leaf in trees.flatten(module.params).items():
        gained = 0.5 if name.endswith("/bias") and name.startswith("encoder") else 0
        np.testing.assert_allclose(ported[name], leaf + gained, atol=1e-6)
        np.testing.assert_array_equal(copied[name], leaf)


def test_wrong_names_are_answered_with_those_there_are(params, host):
    module = module_of(CONFIGS["lora"], params)
    with pytest.raises(ValueError, match="'magic' is unknown; there are copy, skip"):
        port(module, host, host, "magic")
    with pytest.raises(ValueError, match="'correlation' takes no ridge"):
        port(module, host, host, "correlation", ridge=1.0)
    with pytest.raises(ValueError, match="depth 'deep' is not one of skip, average"):
        port(module, host, host, "ridge", depth="deep")
    with pytest.raises(ValueError, match="no hidden states of origin"):
        port(module, host._replace(states={}), host, "correlation")


def test_a_residual_init_is_made_portable_first(params, host):
    config = PeftConfig("lora", rank=2, init="pissa")
    module = module_of(PeftConfig("lora", rank=2), params)
    with pytest.raises(ValueError, match="pissa"):
        port(Module(config, module.params, {}), host, host)


def test_sizes_of_a_host(host):
    assert size_of(host, "encoder/layer_0/mlp/up", "out") == 24
    assert size_of(host, "encoder/layer_0/attention/norm", "in") == 16
    assert size_of(host, "head/classifier", "in") == 16
    assert size_of(host, "encoder/layer_9/mlp/up", "in") is None
