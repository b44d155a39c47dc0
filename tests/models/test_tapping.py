import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax import trees
from fusion_jax.models import HEADS, EncoderConfig, build_model

TYPES = {"bert": 2, "roberta": 1, "distilbert": 0, "gpt2": 0}
ROWS, LENGTH, LABELS = 3, 6, 4
# multi_label differs from single_label in its loss alone.
PAIRS = [(k, f) for k in HEADS if k != "multi_label" for f in HEADS[k]]
LAST = "encoder/layer_1/"


def batch_of(seed=0):
    generator = np.random.default_rng(seed)
    mask = np.ones((ROWS, LENGTH), np.int32)
    mask[-1, LENGTH // 2 :] = 0
    shape = (ROWS, LENGTH)
    return {
        "input_ids": generator.integers(2, 50, shape, dtype=np.int32),
        "attention_mask": mask,
        "token_type_ids": generator.integers(0, 2, shape, dtype=np.int32),
        "choice_ids": generator.integers(0, 3, shape, dtype=np.int32),
        "choice_mask": np.ones((ROWS, 3), np.int32),
    }


def make(kind, family, **options):
    types = TYPES[family]
    config = EncoderConfig(family, 50, 16, 2, 4, 24, 20, types, pad_token_id=1)
    return build_model(config, kind, LABELS, **options)


class Recorder:
    """A tap that keeps what it is given and changes nothing."""

    def __init__(self):
        self.seen = []

    def __call__(self, name, x, y):
        self.seen.append((name, x, y))

    @property
    def names(self):
        return [name for name, _, _ in self.seen]


@pytest.fixture(params=PAIRS, ids="-".join, scope="module")
def built(request):
    kind, family = request.param
    model = make(kind, family)
    generator = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jnp.asarray(generator.normal(0.0, 0.5, x.shape), jnp.float32),
        model.init(jax.random.key(0)),
    )
    return kind, family, model, params


def kernels(params):
    return sorted(n for n in trees.flatten(params) if n.endswith("/kernel"))


def test_every_kernel_is_tapped_once_with_its_own_input_and_output(built):
    kind, family, model, params = built
    tap = Recorder()
    with jax.default_matmul_precision("highest"):
        model.apply(params, batch_of(), tap=tap)
    assert sorted(tap.names) == kernels(params)
    leaves = trees.flatten(params)
    for name, x, y in tap.seen:
        kernel = np.asarray(leaves[name], np.float64)
        bias = leaves.get(name.removesuffix("kernel") + "bias", 0.0)
        assert x.shape[0] == ROWS and x.shape[:-1] == y.shape[:-1], name
        # These are float32 products of a few dozen terms each.
        expected = np.asarray(x, np.float64) @ kernel + bias
        np.testing.assert_allclose(y, expected, atol=1e-4, err_msg=name)
    tokens = {name: x.shape[1:-1] for name, x, _ in tap.seen}
    assert all(
        tokens[name] == (LENGTH,)
        for name in tokens
        if name.startswith("encoder/layer_0/")
    )
    one_token = kind == "single_label"
    assert tokens[f"{LAST}mlp/up/kernel"] == ((1,) if one_token else (LENGTH,))
    whole = {"gpt2": ["qkv"]}.get(family, ["key", "value"])
    assert all(tokens[f"{LAST}attention/{n}/kernel"] == (LENGTH,) for n in whole)


def test_none_changes_nothing(built):
    _, _, model, params = built
    batch = batch_of()
    plain = model.apply(params, batch)["logits"]
    tapped = model.apply(params, batch, tap=Recorder())["logits"]
    np.testing.assert_array_equal(plain, tapped)
    key = jax.random.key(1)
    plain = model.apply(params, batch, dropout_key=key)["logits"]
    tapped = model.apply(params, batch, tap=Recorder(), dropout_key=key)["logits"]
    np.testing.assert_array_equal(plain, tapped)


def test_what_a_tap_returns_goes_on_in_the_place_of_the_output(built):
    _, _, model, params = built
    batch, leaves = batch_of(), trees.flatten(params)
    names = kernels(params)
    shifts = {n: 0.5 * jnp.cos(jnp.arange(leaves[n].shape[1])) for n in names}

    @jax.jit
    def tapped(params, chosen):
        def tap(name, x, y):
            # As if the kernel were four times itself and the bias moved.
            more = 3 * x @ leaves[name] + shifts[name]
            return y + chosen[name] * more

        return model.apply(params, batch, tap=tap)["logits"]

    apply = jax.jit(model.apply)
    with jax.default_matmul_precision("highest"):
        before = apply(params, batch)["logits"]
        nothing = dict.fromkeys(names, 0.0)
        np.testing.assert_allclose(tapped(params, nothing), before, atol=1e-5)
        for name in names:
            changed = leaves | {name: 4 * leaves[name]}
            bias = name.removesuffix("kernel") + "bias"
            if bias in leaves:
                changed[bias] = leaves[bias] + shifts[name]
            expected = apply(trees.unflatten(changed), batch)["logits"]
            if bias not in leaves:
                assert name == "head/classifier/kernel"
                expected = expected + shifts[name]
            assert np.abs(expected - before).max() > 1e-3, name
            ours = tapped(params, nothing | {name: 1.0})
            np.testing.assert_allclose(
                ours, expected, atol=5e-5, rtol=5e-5, err_msg=name
            )


def test_stages_give_the_names_of_apply_in_its_order(built):
    _, _, model, params = built
    whole, parts, carry = Recorder(), Recorder(), None
    model.apply(params, batch_of(), tap=whole)
    for stage in model.stages:
        own, _ = trees.partition(params, stage.owns)
        mine = Recorder()
        carry = stage.apply(own, carry, batch_of(), tap=mine)
        assert sorted(mine.names) == kernels(own), stage.name
        parts.seen += mine.seen
    assert parts.names == whole.names
    for (name, x, y), (_, other, output) in zip(whole.seen, parts.seen, strict=True):
        np.testing.assert_array_equal(x, other, err_msg=name)
        np.testing.assert_array_equal(y, output, err_msg=name)


def test_a_tap_has_no_effect_outside_its_call(built):
    _, _, model, params = built
    tap, other = Recorder(), Recorder()
    plain = model.apply(params, batch_of())["logits"]
    model.apply(params, batch_of(), tap=tap)
    count = len(tap.seen)
    np.testing.assert_array_equal(model.apply(params, batch_of())["logits"], plain)
    model.apply(params, batch_of(), tap=other)
    assert len(tap.seen) == count == len(other.seen)

    def fail(name, x, y):
        raise RuntimeError(name)

    with pytest.raises(RuntimeError, match="kernel"):
        model.apply(params, batch_of(), tap=fail)
    np.testing.assert_array_equal(model.apply(params, batch_of())["logits"], plain)


def test_every_token_gives_equal_logits_and_all_inputs_of_the_last_layer(built):
    kind, family, model, params = built
    full = make(kind, family, every_token=True)
    tap = Recorder()
    with jax.default_matmul_precision("highest"):
        expected = model.apply(params, batch_of())["logits"]
        logits = full.apply(params, batch_of(), tap=tap)["logits"]
    np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=1e-5)
    assert sorted(tap.names) == kernels(params)
    layers = [(n, x) for n, x, _ in tap.seen if n.startswith("encoder/layer_")]
    assert layers and all(x.shape[:2] == (ROWS, LENGTH) for _, x in layers)


def test_a_tap_is_called_while_tracing_and_its_values_may_leave_the_program():
    model = make("single_label", "gpt2")
    params, calls = model.init(jax.random.key(0)), []

    @jax.jit
    def means(params, batch):
        kept = {}

        def tap(name, x, y):
            calls.append(name)
            kept[name] = x.mean()

        model.apply(params, batch, tap=tap)
        return kept

    first, second = means(params, batch_of(0)), means(params, batch_of(1))
    assert sorted(calls) == sorted(first) == kernels(params)
    assert all(float(first[n]) != float(second[n]) for n in first)


def test_around_stands_in_the_place_of_every_layer_and_a_tap_within_it():
    model = make("single_label", "bert")
    params, names, tap = model.init(jax.random.key(0)), [], Recorder()

    def unchanged(name, call, x):
        names.append(name)
        return call(x)

    def twice(name, call, x):
        # A layer may be called as often as one likes.
        return call(x) if name.endswith("norm") else 0.5 * (call(x) + call(x))

    batch = batch_of()
    plain = model.apply(params, batch)["logits"]
    ours = model.apply(params, batch, around=unchanged, tap=tap)["logits"]
    np.testing.assert_array_equal(ours, plain)
    layers = {name.rpartition("/")[0] for name in trees.flatten(params)}
    assert sorted(names) == sorted(layers)
    assert sorted(tap.names) == kernels(params)
    again = model.apply(params, batch, around=twice)["logits"]
    np.testing.assert_array_equal(again, plain)
    key = jax.random.key(1)
    dropped = model.apply(params, batch, dropout_key=key)["logits"]
    ours = model.apply(params, batch, around=unchanged, dropout_key=key)["logits"]
    np.testing.assert_array_equal(ours, dropped)


def test_what_around_returns_goes_on_and_its_input_is_what_the_layer_gets():
    model = make("single_label", "gpt2")
    params, batch = model.init(jax.random.key(0)), batch_of()
    name = "encoder/layer_0/mlp/down"
    leaves = trees.flatten(params)
    changed = {**leaves, f"{name}/kernel": 3 * leaves[f"{name}/kernel"]}
    expected = model.apply(trees.unflatten(changed), batch)["logits"]

    def around(path, call, x):
        return call(3 * x) if path == name else call(x)

    ours = model.apply(params, batch, around=around)["logits"]
    np.testing.assert_allclose(ours, expected, atol=1e-6)
