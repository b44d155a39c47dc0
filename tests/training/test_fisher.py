"""Diagonal Fishers against one gradient an example and class, in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_jax.data.batches import eval_batches, make_batch
from fusion_jax.evaluation.losses import loss_of
from fusion_jax.training.fisher import collect_fisher
from fusion_jax.training.fisher_scores import class_scores
from fusion_jax.trees import flatten
from fusion_jax.types import Model
from tests.training.conftest import MODEL, VOCABULARY, WIDTH, make_split, small_init

ROWS = 7


def loud(classes=3):
    """Parameters whose probabilities are far from equal."""
    params = small_init(jax.random.key(3))
    head = {
        "kernel": jax.random.normal(jax.random.key(4), (WIDTH, classes)) * 1.5,
        "bias": jnp.linspace(-0.5, 0.5, classes),
    }
    return {**params, "head": {"classifier": head}}


def batches_of(split, tokens=64, **options):
    return eval_batches(split, tokens_per_batch=tokens, buckets=(6, 9, 16), **options)


def rows_of(batches):
    for batch in batches:
        for row in np.flatnonzero(batch["mask"] > 0):
            yield {
                name: x if name == "label_mask" else x[row : row + 1]
                for name, x in batch.items()
            }


def mean_square(params, batches, terms, power=2):
    """The mean over rows of the sum over (weight, log-likelihood) terms, float64.

    terms: (params, row) -> (weights [S], log-likelihoods [S]). `power` takes the place
    of the square.
    """
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
        total, count = None, 0
        # The parts of a row that choose columns are no arguments of the program.
        whole = {n: x for n, x in batches[0].items() if n == "label_mask"}
        weigh = jax.jit(lambda params, row: terms(params, row | whole)[0])
        differentiate = jax.jit(
            jax.jacrev(lambda params, row: terms(params, row | whole)[1])
        )
        for row in rows_of(batches):
            row = {n: x for n, x in row.items() if n not in whole}
            weights = np.asarray(weigh(params, row), np.float64)
            gradients = differentiate(params, row)

            def fisher(g, weights=weights):
                return np.einsum("s,s...->...", weights, np.asarray(g) ** power)

            found = jax.tree.map(fisher, gradients)
            total = found if total is None else jax.tree.map(np.add, total, found)
            count += 1
        return jax.tree.map(lambda x: x / count, total), count


def by_class(params, row, apply=MODEL.apply):
    logits = apply(params, row)["logits"][0]
    logits = logits[np.asarray(row["label_mask"]) > 0]
    scores = logits - jnp.log(jnp.sum(jnp.exp(logits)))
    return jnp.exp(scores), scores


def close(actual, expected, tolerance=1e-5, zero=()):
    """Equal to a share of each leaf's largest entry; leaves of `zero` are rounding."""
    actual, expected = flatten(actual), flatten(expected)
    assert actual.keys() == expected.keys()
    for name, x in expected.items():
        assert actual[name].dtype == np.float32
        if name in zero:
            assert max(x.max(), actual[name].max()) < 1e-12
            continue
        assert np.abs(x).max() > 1e-8, name
        np.testing.assert_allclose(
            actual[name], x, rtol=tolerance, atol=tolerance * np.abs(x).max()
        )


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_true_is_the_expectation_over_classes_of_squared_gradients(classes):
    params = loud(classes)
    batches = batches_of(make_split(ROWS, 1, classes))
    assert any((b["mask"] == 0).any() for b in batches)
    expected, rows = mean_square(params, batches, by_class)
    for chunk in (None, 1, 3, 64):
        found, count = collect_fisher(
            MODEL, params, batches, kind="single_label", chunk=chunk
        )
        assert count == rows == ROWS
        close(found, expected)


def test_the_bias_of_a_softmax_has_p_times_one_minus_p():
    params = loud()
    batches = batches_of(make_split(ROWS, 1))
    found, _ = collect_fisher(MODEL, params, batches, kind="single_label")
    p = np.concatenate(
        [np.asarray(by_class(params, row)[0], np.float64) for row in rows_of(batches)]
    ).reshape(ROWS, 3)
    np.testing.assert_allclose(
        found["head"]["classifier"]["bias"], (p * (1 - p)).mean(0), rtol=1e-5
    )


def test_empirical_is_the_mean_of_squares_not_the_square_of_the_mean():
    params = loud()
    batches = [make_batch(make_split(ROWS, 1), np.arange(ROWS), ROWS + 1, 16)]
    found, _ = collect_fisher(
        MODEL, params, batches, kind="single_label", estimator="empirical"
    )

    def own(params, row):
        scores = by_class(params, row)[1]
        return np.ones(1), scores[row["label"]]

    close(found, mean_square(params, batches, own)[0])

    def batch_loss(params):
        losses = loss_of("single_label")(MODEL.apply(params, batches[0]), batches[0])
        return losses[:ROWS].mean()

    wrong = flatten(jax.tree.map(jnp.square, jax.grad(batch_loss)(params)))
    right = flatten(found)
    assert all(
        np.abs(wrong[name] - right[name]).max() > 0.3 * right[name].max()
        for name in right
    )


@pytest.mark.parametrize("estimator", ["true", "empirical", "sampled"])
def test_batching_order_and_chunks_do_not_matter(estimator):
    params, split = loud(), make_split(ROWS, 1)
    options = {
        "kind": "single_label",
        "estimator": estimator,
        "key": jax.random.key(0),
    }
    first, _ = collect_fisher(MODEL, params, batches_of(split), **options)
    one = (make_batch(split, [i], 3, 16) for i in reversed(range(ROWS)))
    again, count = collect_fisher(MODEL, params, one, **options)
    assert count == ROWS
    close(again, first)
    host = jax.tree.map(np.asarray, params)
    whole = [make_batch(split, np.arange(ROWS), 12, 16)]
    close(collect_fisher(MODEL, host, whole, chunk=5, **options)[0], first)


def test_padding_rows_may_hold_anything():
    params = loud()
    batch = make_batch(make_split(ROWS, 1), np.arange(ROWS), 12, 16)
    dirty = {name: x.copy() for name, x in batch.items()}
    dirty["attention_mask"][ROWS:] = 0  # 0 / 0 in this model
    dirty["label"][ROWS:] = 2
    for estimator, chunk in itertools.product(("true", "empirical"), (1, 4)):
        clean, dirtied = (
            collect_fisher(
                MODEL,
                params,
                [one],
                kind="single_label",
                estimator=estimator,
                chunk=chunk,
            )
            for one in (batch, dirty)
        )
        assert clean[1] == dirtied[1] == ROWS
        close(dirtied[0], clean[0], 1e-6)


@pytest.mark.parametrize("kind", ["single_label", "multi_label"])
def test_padding_columns_are_no_classes(kind):
    split = make_split(ROWS, 1)
    wide, narrow = loud(5), loud(5)
    narrow["head"]["classifier"] = {
        name: x[..., :3] for name, x in wide["head"]["classifier"].items()
    }
    found, _ = collect_fisher(MODEL, wide, batches_of(split, num_labels=5), kind=kind)
    expected, _ = collect_fisher(MODEL, narrow, batches_of(split), kind=kind)
    head = found["head"]["classifier"]
    assert not head["kernel"][:, 3:].any() and not head["bias"][3:].any()
    cut = {name: x[..., :3] for name, x in head.items()}
    close({**found, "head": {"classifier": cut}}, expected)


def test_independent_labels_add_up():
    params = loud()
    batches = batches_of(make_split(ROWS, 1))
    generator = np.random.default_rng(0)
    batches = [
        {
            **b,
            "labels": generator.integers(0, 2, (len(b["mask"]), 3)).astype(np.float32),
        }
        for b in batches
    ]
    found, _ = collect_fisher(MODEL, params, batches, kind="multi_label")

    def likelihood(z, y):
        return jnp.sum(y * z - jnp.log1p(jnp.exp(z)))

    def joint(params, row):
        z = MODEL.apply(params, row)["logits"][0]
        answers = np.array(list(itertools.product((0, 1), repeat=3)))
        scores = jax.vmap(likelihood, (None, 0))(z, answers)
        return jnp.exp(scores), scores

    close(found, mean_square(params, batches, joint)[0])

    def own(params, row):
        z = MODEL.apply(params, row)["logits"][0]
        return np.ones(1), likelihood(z, row["labels"][0])[None]

    found, _ = collect_fisher(
        MODEL, params, batches, kind="multi_label", estimator="empirical"
    )
    close(found, mean_square(params, batches, own)[0])


def token_apply(params, batch, *, dropout_key=None):
    """Logits of every token, which sees the mean of its row."""
    del dropout_key
    encoder = params["encoder"]
    table = encoder["embeddings"]["word"]["embedding"]
    x = jnp.take(table, batch["input_ids"], axis=0)
    mask = batch["attention_mask"][..., None].astype(x.dtype)
    x = x + (x * mask).sum(1, keepdims=True) / mask.sum(1, keepdims=True)
    up = encoder["layer_0"]["mlp"]["up"]
    x = jnp.tanh(x @ up["kernel"] + up["bias"])
    head = params["head"]["classifier"]
    return {"logits": x @ head["kernel"] + head["bias"]}


def choice_apply(params, batch, *, dropout_key=None):
    """Candidates of a row: the classes of the small model."""
    return MODEL.apply(params, batch, dropout_key=dropout_key)


# A span's softmax runs over tokens: what the bias adds to all of them does not count.
SPAN_BIAS = ("head/classifier/bias",)
TOKENS = Model(init=small_init, apply=token_apply, stages=())
CHOICES = Model(init=small_init, apply=choice_apply, stages=())


def repeated(kind, copies):
    """One row many times, under different numbers: the mean is the expectation."""
    ids = np.array([[3, 9, 17, 5, 1]], np.int32)
    row = {
        "input_ids": ids,
        "attention_mask": np.array([[1, 1, 1, 1, 0]], np.int32),
        "mask": np.ones(1, np.float32),
    }
    row |= {
        "token": {"tags": np.array([[-1, 0, 2, -1, -1]], np.int32)},
        "span": {
            "start": np.array([2], np.int32),
            "end": np.array([2], np.int32),
            "context_mask": np.array([[0, 1, 1, 1, 0]], np.int32),
        },
        "multi_label": {"labels": np.zeros((1, 3), np.float32)},
        "single_label": {"label": np.zeros(1, np.int32)},
        "choice": {
            "label": np.zeros(1, np.int32),
            "choice_mask": np.array([[1, 0, 1]], np.int32),
        },
    }[kind]
    batch = {name: np.repeat(x, copies, axis=0) for name, x in row.items()}
    if kind in ("single_label", "token", "multi_label"):
        row["label_mask"] = batch["label_mask"] = np.ones(3, np.float32)
    return row, batch | {"index": np.arange(copies, dtype=np.int32)}


def joint_answers(kind):
    one = {
        "single_label": [{"label": np.array([c])} for c in range(3)],
        "choice": [{"label": np.array([c])} for c in (0, 2)],
        "multi_label": [
            {"labels": np.array([y], np.float32)}
            for y in itertools.product((0, 1), repeat=3)
        ],
        "token": [
            {"tags": np.array([[-1, a, b, -1, -1]])}
            for a, b in itertools.product(range(3), repeat=2)
        ],
        "span": [
            {"start": np.array([s]), "end": np.array([e])}
            for s, e in itertools.product((1, 2, 3), repeat=2)
        ],
    }
    return one[kind]


@pytest.mark.parametrize(
    "kind", ["single_label", "multi_label", "choice", "token", "span"]
)
def test_sampled_is_the_expectation_under_the_models_own_answers(kind):
    model = {"token": TOKENS, "span": TOKENS, "choice": CHOICES}.get(kind, MODEL)
    # Loss parts of a row: its log-likelihood is minus their sum.
    parts = {"token": 2, "span": 2, "multi_label": 3}.get(kind, 1)
    unit = 3 if kind == "multi_label" else 1
    params = loud(2 if kind == "span" else 3)
    row, batch = repeated(kind, 10_000)
    answers = joint_answers(kind)
    zero = SPAN_BIAS if kind == "span" else ()

    def terms(params, row):
        outputs = model.apply(params, row)
        losses = jnp.stack([loss_of(kind)(outputs, row | y)[0] for y in answers])
        return jnp.exp(-parts * losses), -unit * losses

    assert float(terms(params, row)[0].sum()) == pytest.approx(1, abs=1e-5)
    expected, _ = mean_square(params, [row], terms)
    options = {"kind": kind, "estimator": "sampled", "chunk": 50}
    found, count = collect_fisher(
        model, params, [batch], key=jax.random.key(5), **options
    )
    assert count == 10_000
    fourth = flatten(mean_square(params, [row], terms, power=4)[0])
    for name, x in flatten(expected).items():
        error = np.abs(flatten(found)[name] - x)
        deviation = np.sqrt(np.maximum(fourth[name] - x**2, 0) / count)
        assert (error < 5 * deviation + 1e-5 * x.max() + 1e-12).all(), name
        # Five deviations are little enough to tell a wrong expectation.
        assert name in zero or deviation.max() < 0.05 * x.max(), name
    other, _ = collect_fisher(model, params, [batch], key=jax.random.key(6), **options)
    assert any(
        (a != b).any()
        for a, b in zip(*map(jax.tree.leaves, (found, other)), strict=True)
    )


@pytest.mark.parametrize("kind", ["token", "span", "choice"])
def test_empirical_takes_the_loss_of_any_kind(kind):
    model = {"token": TOKENS, "span": TOKENS, "choice": CHOICES}[kind]
    params = loud(2 if kind == "span" else 3)
    row, _ = repeated(kind, 1)

    def own(params, row):
        return np.ones(1), loss_of(kind)(model.apply(params, row), row)

    options = {"estimator": "empirical"}
    found, count = collect_fisher(model, params, [row], kind=kind, **options)
    assert count == 1
    zero = SPAN_BIAS if kind == "span" else ()
    close(found, mean_square(params, [row], own)[0], 1e-4, zero)
    mixed, _ = collect_fisher(model, params, [row], kind="mixed", **options)
    close(mixed, found, 1e-6, zero)


def test_rows_without_a_target_do_not_count():
    row, _ = repeated("span", 1)
    nowhere = {**row, "start": np.array([-1]), "end": np.array([-1])}
    params = loud(2)
    alone, count = collect_fisher(
        TOKENS, params, [row, nowhere], kind="span", estimator="empirical"
    )
    assert count == 1
    again, _ = collect_fisher(TOKENS, params, [row], kind="span", estimator="empirical")
    close(alone, again, 1e-6, SPAN_BIAS)


@settings(max_examples=40)
@given(
    st.lists(st.floats(-12, 12, width=32), min_size=1, max_size=5),
    st.sampled_from([1.0, 1e3]),
)
def test_the_scores_factor_the_covariance_of_the_label(values, scale):
    z = np.asarray(values, np.float64) * scale
    factor = np.asarray(jax.jacrev(class_scores)(jnp.asarray(z, jnp.float32)))
    assert factor.shape == (len(z) - 1, len(z))
    p = np.exp(z - z.max())
    p /= p.sum()
    assert np.isfinite(factor).all()
    # A logit of 12,000 is known to 1e-3, and so are the probabilities.
    np.testing.assert_allclose(
        factor.T @ factor, np.diag(p) - np.outer(p, p), atol=2e-6 * scale
    )


def test_certain_models_have_a_small_finite_fisher():
    params = loud()
    batches = batches_of(make_split(ROWS, 1))
    sure = {
        **params,
        "head": jax.tree.map(lambda x: x * 1e4, params["head"]),
    }
    found, _ = collect_fisher(MODEL, sure, batches, kind="single_label")
    assert all(np.isfinite(x).all() for x in flatten(found).values())
    assert found["head"]["classifier"]["bias"].max() < 1e-3


def test_what_cannot_be_estimated_is_named():
    params = loud()
    batches = batches_of(make_split(ROWS, 1))

    def collect(batches=batches, kind="single_label", **options):
        return collect_fisher(MODEL, params, batches, kind=kind, **options)

    for kind in ("token", "span", "choice"):
        with pytest.raises(ValueError, match=f"{kind}.*'sampled'.*'empirical'"):
            collect(kind=kind)
    with pytest.raises(ValueError, match=r"'exact' is unknown.*chunk=0"):
        collect(estimator="exact", chunk=0)
    with pytest.raises(ValueError, match="no loss for kind 'poem'"):
        collect(kind="poem")
    with pytest.raises(ValueError, match="pass key="):
        collect(estimator="sampled")
    blind = [{n: x for n, x in batches[0].items() if n != "index"}]
    with pytest.raises(ValueError, match="no 'index'"):
        collect(blind, estimator="sampled", key=jax.random.key(0))
    empty = [{**b, "mask": np.zeros_like(b["mask"])} for b in batches]
    for nothing in (empty, []):
        with pytest.raises(ValueError, match="no row of the batches counts"):
            collect(nothing)
    params["encoder"]["layer_0"]["mlp"]["up"]["bias"] = jnp.full(WIDTH, jnp.nan)
    with pytest.raises(ValueError, match=r"not finite, encoder/"):
        collect()


def test_a_vocabulary_entry_nobody_used_has_no_fisher():
    batches = batches_of(make_split(ROWS, 1))
    found, _ = collect_fisher(MODEL, loud(), batches, kind="single_label")
    used = np.zeros(VOCABULARY, bool)
    for row in rows_of(batches):
        used[row["input_ids"][row["attention_mask"] > 0]] = True
    table = found["encoder"]["embeddings"]["word"]["embedding"]
    assert not used.all()
    assert table[used].any(axis=1).all() and not table[~used].any()
