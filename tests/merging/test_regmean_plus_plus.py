"""RegMean stage by stage: a tiny encoder, and a toy whose errors can be counted."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax import trees
from fusion_jax.merging.layer_inputs import InputMoments, mean_moment
from fusion_jax.merging.regmean import regmean
from fusion_jax.merging.regmean_plus_plus import regress_stages
from fusion_jax.models import EncoderConfig, build_model
from fusion_jax.types import Stage

CONFIG = EncoderConfig("bert", 40, 16, 2, 4, 24, 20, 2)
MODEL = build_model(CONFIG, "single_label", 3, every_token=True)
C = np.asarray([0.5, 1.5])
HEAD = r"head/.*|encoder/pooler/.*"


def batch_of(seed, rows=4, length=6, columns=0, empty=0):
    """Random tokens; `columns` of padding behind them, `empty` rows of it below."""
    random = np.random.default_rng(seed)
    shape = (rows, length)
    ids = random.integers(5, 40, shape, dtype=np.int32)
    mask = (np.arange(length) < random.integers(3, length + 1, (rows, 1))).astype(
        np.int32
    )
    types = random.integers(0, 2, shape, dtype=np.int32)
    noise = random.integers(5, 40, (rows + empty, length + columns), dtype=np.int32)
    noise[:rows, :length] = ids
    wide = np.pad(mask, ((0, empty), (0, columns)))
    wide[rows:] = 1  # tokens that only the row's mask says are none
    return {
        "input_ids": noise,
        "attention_mask": wide,
        "token_type_ids": np.pad(types, ((0, empty), (0, columns))),
        "mask": np.repeat([1.0, 0.0], [rows, empty]).astype(np.float32),
    }


def perturbed(seed, scale=0.3):
    """An expert: the same start, every leaf moved."""
    start = MODEL.init(jax.random.key(0))
    random = np.random.default_rng(seed)

    def move(name, x):
        x = np.asarray(x)
        return x + (scale * random.normal(size=x.shape) * 0.2).astype(np.float32)

    return trees.map_with_names(move, start)


@pytest.fixture(scope="module")
def experts():
    return [perturbed(1), perturbed(2)]


@pytest.fixture(scope="module")
def batches():
    """Two experts with other data, of several shapes and numbers of batches."""
    return [[batch_of(1), batch_of(2, 3, 5)], [batch_of(3), batch_of(4), batch_of(5)]]


@pytest.fixture(scope="module")
def merged(experts, batches):
    return regress_stages(MODEL.stages, experts, batches, C)


@jax.jit
def whole_pass(params, batch):
    tap = InputMoments(batch)
    MODEL.apply(params, batch, tap=tap)
    return {name: tap.sums[owner] for name, owner in tap.readers.items()}


def extended(moment):
    """The sum of [x; 1] [x; 1]^T in float64."""
    return mean_moment(moment).astype(np.float64) * int(moment.count)


def all_grams(params, batches):
    """Extended Grams of every kernel, from whole forward passes."""
    sums = {}
    for batch in batches:
        for name, moment in whole_pass(params, batch).items():
            sums[name] = sums.get(name, 0) + extended(moment)
    return {name: x / x[-1, -1] for name, x in sums.items()}


def assert_close(one, two, **tolerance):
    assert trees.mismatches([one, two]) == []
    flat = trees.flatten(two)
    for name, leaf in trees.flatten(one).items():
        np.testing.assert_allclose(leaf, flat[name], err_msg=name, **tolerance)


@pytest.mark.parametrize("biases", [False, True])
def test_without_the_cascade_it_is_regmean_of_all_grams(experts, batches, biases):
    found, report = regress_stages(
        MODEL.stages, experts, batches, C, cascade=False, biases=biases, ridge=1e-4
    )
    grams = [all_grams(*pair) for pair in zip(experts, batches, strict=True)]
    statistics = {
        name: jnp.asarray(np.stack([g[name] for g in grams]), jnp.float32)
        for name in grams[0]
    }
    right = regmean(
        trees.stack(experts),
        jnp.asarray(C),
        statistics=statistics,
        ridge=1e-4,
        biases=biases,
    )
    assert_close(found, jax.tree.map(np.asarray, right), rtol=1e-4, atol=1e-5)
    regressed = {n for n, said in report.items() if said["how"] == "regressed"}
    assert {n for n in regressed if n.endswith("kernel")} == set(statistics)
    assert any(n.endswith("bias") for n in regressed) == biases


def test_the_cascade_reads_what_the_merged_stages_give(experts, batches, merged):
    # Layer 1 by hand: its experts on the output of the merged stages below.
    found, report = merged
    grams, kernels = [], []
    name = "encoder/layer_1/mlp/up/kernel"

    @jax.jit
    def inputs(params, batch):
        carry = None
        for stage in MODEL.stages[:2]:
            carry = stage.apply(found, carry, batch)
        tap = InputMoments(batch)
        MODEL.stages[2].apply(params, carry, batch, tap=tap)
        return tap.sums[tap.readers[name]]

    for expert, own in zip(experts, batches, strict=True):
        total = 0
        for batch in own:
            total = total + extended(inputs(expert, batch))
        grams.append(total / total[-1, -1])
        kernels.append(trees.flatten(expert)[name])
    right = regmean(
        {"w": jnp.asarray(np.stack(kernels))},
        jnp.asarray(C),
        statistics={"w": jnp.asarray(np.stack(grams))},
    )["w"]
    np.testing.assert_allclose(trees.flatten(found)[name], right, rtol=1e-3, atol=1e-4)
    plain, _ = regress_stages(MODEL.stages, experts, batches, C, cascade=False)
    difference = trees.flatten(plain)[name] - trees.flatten(found)[name]
    assert np.abs(difference).max() > 1e-3
    # The first layer reads the averaged embeddings, not the experts' own.
    first = "encoder/layer_0/attention/query/kernel"
    assert np.abs(trees.flatten(plain)[first] - trees.flatten(found)[first]).max() > 0
    assert report[name]["tokens"] == [
        int(sum(batch["attention_mask"].sum() for batch in own)) for own in batches
    ]


@pytest.mark.parametrize("cascade", [True, False])
def test_one_expert_or_equal_experts_return_themselves(experts, batches, cascade):
    options = {"cascade": cascade, "biases": True}
    found, _ = regress_stages(MODEL.stages, experts[:1], batches[:1], [3.0], **options)
    assert_close(found, experts[0], rtol=0, atol=0)
    found, _ = regress_stages(MODEL.stages, [experts[1]] * 2, batches, C, **options)
    assert_close(found, experts[1], rtol=0, atol=0)


def test_one_hot_coefficients_return_that_expert(experts, batches):
    found, _ = regress_stages(MODEL.stages, experts, batches, [0.0, 1.0])
    assert_close(found, experts[1], rtol=0, atol=0)


def test_the_report_says_of_every_leaf_what_was_done(experts, merged):
    found, report = merged
    assert list(report) == list(trees.flatten(experts[0]))
    assert list(trees.flatten(found)) == list(report)
    for name, said in report.items():
        if name.endswith("kernel"):
            assert said["how"] == "regressed" and said["solver"] == "cholesky"
            assert said["loss"] > 0 and 1 <= said["condition"] < 1e7
            assert said["dead"] == 0 and min(said["tokens"]) > 0
        else:
            assert said == {"how": "averaged"}
            stack = [trees.flatten(expert)[name] for expert in experts]
            mean = (C[0] * stack[0] + C[1] * stack[1]) / 2
            np.testing.assert_allclose(
                trees.flatten(found)[name], mean, rtol=1e-5, atol=1e-6
            )
    assert all(isinstance(x, np.ndarray) for x in trees.flatten(found).values())


def test_padding_of_columns_and_rows_does_not_matter(experts, merged):
    wide = [
        [batch_of(1, columns=3, empty=2), batch_of(2, 3, 5, columns=4, empty=3)],
        [batch_of(seed, columns=3, empty=2) for seed in (3, 4, 5)],
    ]
    found, report = regress_stages(MODEL.stages, experts, wide, C)
    assert_close(found, merged[0], rtol=1e-3, atol=1e-4)
    for name, said in report.items():
        assert said.get("tokens") == merged[1][name].get("tokens")


def test_private_leaves_are_left_to_the_caller(experts, batches, merged):
    asked = []

    def rest(names, stacks):
        asked.extend(names)
        assert set(names) == set(stacks)
        assert all(len(stack) == 2 for stack in stacks.values())
        return {n: stacks[n][1] for n in names if re.fullmatch(HEAD, n)}

    found, report = regress_stages(
        MODEL.stages,
        experts,
        batches,
        C,
        layers="encoder/layer_.*",
        merge_rest=rest,
    )
    own = trees.flatten(experts[1])
    for name, leaf in trees.flatten(found).items():
        if re.fullmatch(HEAD, name):
            np.testing.assert_array_equal(leaf, own[name])
            assert report[name] == {"how": "merge_rest"}
        else:
            np.testing.assert_array_equal(leaf, trees.flatten(merged[0])[name])
            assert report[name]["how"] == merged[1][name]["how"]
    # Asked for each leaf once, and for none that was regressed.
    left = [n for n in report if report[n]["how"] != "regressed"]
    assert sorted(asked) == sorted(left)


def test_leaves_that_no_stage_owns_and_integers_have_a_rule(experts, batches):
    more = [
        {**expert, "extra": {"x": np.float32([k, 1]), "step": np.int32([k + 5])}}
        for k, expert in enumerate(experts)
    ]
    found, report = regress_stages(MODEL.stages, more, batches, C)
    np.testing.assert_allclose(found["extra"]["x"], [0.75, 1])
    assert found["extra"]["step"].dtype == np.int32 and found["extra"]["step"][0] == 5
    assert report["extra/x"]["how"] == "averaged"
    assert report["extra/step"]["how"] == "first expert"


def test_what_does_not_fit_is_refused(experts, batches):
    stages = MODEL.stages
    with pytest.raises(ValueError, match=r"2 experts and lists of \[2\] batches"):
        regress_stages(stages, experts, batches[:1], C)
    with pytest.raises(ValueError, match=r"lists of \[2, 0\] batches"):
        regress_stages(stages, experts, [batches[0], []], C)
    with pytest.raises(ValueError, match="coefficients"):
        regress_stages(stages, experts, batches, [1.0])
    with pytest.raises(ValueError, match=r"alpha 1\.5"):
        regress_stages(stages, experts, batches, C, alpha=1.5)
    with pytest.raises(ValueError, match="layers='nothing'"):
        regress_stages(stages, experts, batches, C, layers="nothing")
    with pytest.raises(trees.TreeMismatch, match="head/kernel"):
        head = {**experts[1]["head"], "kernel": np.zeros((16, 5), np.float32)}
        regress_stages(stages, [experts[0], {**experts[1], "head": head}], batches, C)
    with pytest.raises(ValueError, match="no real token in the batches of expert 1"):
        empty = {**batches[1][0], "mask": np.zeros(4, np.float32)}
        regress_stages(stages, experts, [batches[0], [empty]], C)


# A toy of linear layers with tanh between, whose experts have inputs of their own.
def toy_stages(depth):
    def embed(params, carry, batch, *, tap=None, dropout_key=None):
        return batch["x"]

    def layer(index):
        def apply(params, carry, batch, *, tap=None, dropout_key=None):
            own = params[f"layer_{index}"]["kernel"]
            y = carry @ own
            if tap is not None:
                tap(f"layer_{index}/kernel", carry, y)
            return y if index == depth - 1 else jnp.tanh(y)

        return Stage(f"layer_{index}", rf"layer_{index}/.*", apply)

    return (Stage("embed", "embed/.*", embed), *(layer(i) for i in range(depth)))


def toy(seed, depth=2, width=8, num_experts=3, rows=200):
    random = np.random.default_rng(seed)

    def matrix(scale):
        return scale * random.normal(size=(width, width)) / np.sqrt(width)

    start = [matrix(1.2) for _ in range(depth)]
    experts = [
        {
            f"layer_{i}": {"kernel": (w + matrix(0.5)).astype(np.float32)}
            for i, w in enumerate(start)
        }
        for _ in range(num_experts)
    ]
    shapes = np.logspace(0, -1.5, width)[:, None]
    data = [
        (random.normal(size=(2 * rows, width)) * 2 @ (shapes * matrix(1.0))).astype(
            np.float32
        )
        for _ in range(num_experts)
    ]
    return experts, data


def test_in_a_toy_the_cascade_errs_less_and_both_err_less_than_the_average():
    stages = toy_stages(2)

    def outputs(params, x):
        carry = None
        for stage in stages:
            carry = stage.apply(params, carry, {"x": x})
        return np.asarray(carry)

    def error(model, experts, inputs):
        """Relative to the experts' outputs, each on inputs of its own."""
        found = []
        for expert, x in zip(experts, inputs, strict=True):
            y = outputs(expert, x)
            found.append(np.mean((outputs(model, x) - y) ** 2) / np.mean(y**2))
        return np.mean(found)

    errors = []
    for seed in range(10):
        experts, data = toy(seed)
        seen, unseen = zip(*(np.split(x, 2) for x in data), strict=True)
        real = np.ones((len(seen[0]), 1), np.int32)
        batches = [[{"x": x, "attention_mask": real}] for x in seen]
        plain, cascaded = (
            regress_stages(
                stages, experts, batches, np.ones(3), alpha=1.0, cascade=cascade
            )[0]
            for cascade in (False, True)
        )
        average = jax.tree.map(lambda *x: np.mean(x, axis=0), *experts)
        errors.append([error(m, experts, unseen) for m in (average, plain, cascaded)])
    average, plain, cascaded = np.mean(errors, axis=0)
    assert cascaded < 0.97 * plain < 0.5 * average
