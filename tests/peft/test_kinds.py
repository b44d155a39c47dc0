"""What every kind promises, swept over the table and the forms of each kind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax import trees
from fusion_jax.evaluation.losses import loss_of
from fusion_jax.peft import (
    KINDS,
    PeftConfig,
    attach,
    delta,
    host_leaves,
    init_module,
    merge_into,
    module_leaves,
    with_module,
)
from fusion_jax.peft.config import INITS
from fusion_jax.peft.lora import parts
from tests.peft.hosts import (
    CONFIGS,
    FOR_DECODERS,
    batch_of,
    host_of,
    logits,
    model_of,
    moved,
)

CASES = [("bert", name) for name in CONFIGS]
CASES += [("gpt2", name) for name in FOR_DECODERS]
CASES += [("roberta", "prompt")]


@pytest.fixture(params=CASES, ids="-".join, scope="module")
def case(request):
    family, name = request.param
    config = CONFIGS[name]
    return family, config, init_module(config, host_of(family), jax.random.key(3))


def test_the_table_has_every_kind_of_the_config_and_a_form_of_each_is_swept():
    assert set(KINDS) == set(INITS)
    assert {config.kind for config in CONFIGS.values()} == set(KINDS)


def test_what_promises_to_be_a_no_op_at_its_start_changes_nothing(case):
    family, config, module = case
    host = host_of(family)
    plain = logits(model_of(family), host)
    ours = logits(attach(model_of(family), config), with_module(host, module.params))
    if "noop_at_init" in KINDS[config.kind].promises(config):
        np.testing.assert_allclose(ours, plain, atol=1e-6, rtol=1e-6)


def test_a_trained_module_changes_the_outputs_and_a_merged_host_computes_the_same(case):
    family, config, module = case
    host, module = host_of(family), moved(module)
    attached = attach(model_of(family), config)
    ours = logits(attached, with_module(host, module.params))
    assert np.abs(ours - logits(model_of(family), host)).max() > 1e-2
    if "mergeable" not in KINDS[config.kind].promises(config):
        with pytest.raises(ValueError, match=f"{config.kind} modules cannot be merged"):
            merge_into(host, module)
        return
    merged = merge_into(host, module)
    assert not trees.mismatches([host, merged])
    np.testing.assert_allclose(
        logits(model_of(family), merged), ours, atol=1e-5, rtol=1e-5
    )


def test_the_delta_is_what_merging_adds_to_a_kernel(case):
    family, config, module = case
    if "has_delta" not in KINDS[config.kind].promises(config):
        return
    host, module = host_of(family), moved(module)
    before, after = (trees.flatten(x) for x in (host, merge_into(host, module)))
    for path, leaves in parts(module.params).items():
        name = f"{path}/kernel" if f"{path}/kernel" in before else f"{path}/embedding"
        added = delta(config, path, leaves, before[name])
        np.testing.assert_allclose(before[name] + added, after[name], atol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_reach_exactly_the_leaves_of_the_module(name):
    family, config = "bert", CONFIGS[name]
    module = init_module(config, host_of(family), jax.random.key(3))
    whole = with_module(host_of(family), moved(module).params)
    own, host = trees.partition(whole, module_leaves(config))
    assert sorted(trees.flatten(own)) == sorted(trees.flatten(module.params))
    assert trees.flatten(host) == trees.flatten(
        trees.partition(whole, host_leaves(config))[0]
    )
    model, batch = attach(model_of(family), config), batch_of()

    @jax.jit
    def gradient(own):
        def loss(own):
            outputs = model.apply(trees.combine(own, host), batch)
            return loss_of("single_label")(outputs, batch).sum()

        return jax.grad(loss)(own)

    for name, leaf in trees.flatten(gradient(own)).items():
        assert np.isfinite(leaf).all(), name
        assert np.abs(leaf).max() > 0, name


def test_stages_are_the_model_and_own_every_leaf_that_they_read(case):
    family, config, module = case
    model = attach(model_of(family), config)
    params = with_module(host_of(family), moved(module).params)
    batch, owned = batch_of(), set()

    @jax.jit
    def by_stages(params):
        carries, bodies = [None], []
        for stage in model.stages:
            own, _ = trees.partition(params, stage.owns)
            owned.update(trees.flatten(own))
            if stage.body is not None:
                start = len(stage.prefix) + 1
                below = {name[start:]: x for name, x in trees.flatten(own).items()}
                body = stage.body(trees.unflatten(below), carries[-1], batch)
                bodies.append((len(carries), body))
            carries.append(stage.apply(own, carries[-1], batch))
        return carries[-1]["logits"], [(carries[i], body) for i, body in bodies]

    with jax.default_matmul_precision("highest"):
        said, bodies = by_stages(params)
    assert owned == set(trees.flatten(params))
    np.testing.assert_allclose(said, logits(model, params), atol=1e-5, rtol=1e-5)
    for carry, body in bodies:
        np.testing.assert_allclose(body, carry, atol=1e-5, rtol=1e-5)


def test_init_by_shapes_alone_gives_the_shapes_of_the_module(case):
    family, config, module = case
    shapes = jax.eval_shape(
        lambda host, key: init_module(config, host, key).params,
        host_of(family),
        jax.random.key(0),
    )
    assert not trees.mismatches([module.params, shapes])
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(module.params))


def test_a_tap_still_sees_every_kernel_once(case):
    family, config, module = case
    seen = []
    params = with_module(host_of(family), module.params)
    model = attach(model_of(family), config)
    jax.eval_shape(
        lambda: model.apply(
            params, batch_of(), tap=lambda name, x, y: seen.append(name)
        )
    )
    kernels = [n for n in trees.flatten(host_of(family)) if n.endswith("/kernel")]
    assert sorted(seen) == sorted(kernels)


def test_equal_arguments_give_the_same_attached_model():
    config = PeftConfig(rank=2)
    assert attach(model_of(), config) is attach(model_of(), PeftConfig(rank=2))
    layers = attach(model_of(every_token=True), config).stages[1:-1]
    assert layers[0].body is not None and layers[0].body is layers[1].body


def test_a_module_of_another_architecture_is_not_merged():
    module = init_module(PeftConfig(), host_of("gpt2"), jax.random.key(0))
    with pytest.raises(ValueError, match=r"no layer encoder/layer_0/attention/qkv"):
        merge_into(host_of("bert"), module)
