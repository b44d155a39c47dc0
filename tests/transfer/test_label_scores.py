"""Scores with labels against independent formulas and known answers."""

import numpy as np
import pytest
import scipy.stats

from fusion_jax.transfer.feature_scores import (
    gaussian_class_separation,
    h_score,
    logme,
    parc,
    shrunk_h_score,
    transrate,
)
from fusion_jax.transfer.prediction_scores import confidence, leep, nce, nleep

RANDOM = np.random.default_rng(1)
SCORES = {
    "logme": logme,
    "h_score": h_score,
    "shrunk_h_score": shrunk_h_score,
    "transrate": transrate,
    "gaussian_class_separation": gaussian_class_separation,
    "parc": parc,
}


def task(rows=60, width=8, classes=3, apart=1.0, random=RANDOM):
    labels = random.permutation(np.arange(rows) % classes)
    centres = apart * random.normal(size=(classes, width))
    return centres[labels] + random.normal(size=(rows, width)), labels


def evidence(features, t, alpha, beta):
    """Log density of t under N(0, I / beta + F F' / alpha), over n."""
    n = len(t)
    spread = np.eye(n) / beta + features @ features.T / alpha
    return scipy.stats.multivariate_normal(np.zeros(n), spread).logpdf(t) / n


@pytest.mark.parametrize("rows,width", [(60, 8), (20, 50)])
def test_logme_is_the_log_density_of_its_model_at_a_maximum(rows, width):
    features, labels = task(rows, width, classes=2)

    def best(t):
        grid = np.exp(np.linspace(-7, 7, 57))
        return max(evidence(features, t, a, b) for a in grid for b in grid)

    found = logme(features, labels)
    reference = np.mean([best((labels == k).astype(float)) for k in (0, 1)])
    # The fixed point stops after eleven rounds; the maximum is flat there.
    assert found == pytest.approx(reference, abs=0.02)
    assert found <= reference + 0.005


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("rows,width", [(60, 8), (24, 50)])
def test_scores_do_not_depend_on_order_or_on_names_of_classes(name, rows, width):
    features, labels = task(rows, width)
    score = SCORES[name](features, labels)
    assert np.isfinite(score)
    order = RANDOM.permutation(rows)
    assert SCORES[name](features[order], labels[order]) == pytest.approx(
        score, rel=1e-7
    )
    renamed = np.array([2, 0, 1])[labels]
    assert SCORES[name](features, renamed) == pytest.approx(score, rel=1e-9)
    if name != "parc":  # the signs of its axes are by their weights, which turn
        turn = scipy.stats.ortho_group.rvs(width, random_state=2)
        assert SCORES[name](features @ turn, labels) == pytest.approx(score, rel=1e-6)


@pytest.mark.parametrize("name", SCORES)
def test_classes_that_are_apart_score_higher(name):
    scores = []
    for apart in (0.0, 1.0, 5.0):
        random = np.random.default_rng(5)
        scores.append(SCORES[name](*task(120, 6, apart=apart, random=random)))
    assert scores == sorted(scores) and scores[0] < scores[-1]


def test_h_score_is_the_trace_of_its_definition():
    features, labels = task()
    means = np.stack([features[labels == k].mean(axis=0) for k in range(3)])
    between = np.cov(means[labels].T)
    expected = np.trace(np.linalg.inv(np.cov(features.T)) @ between)
    assert h_score(features, labels) == pytest.approx(expected)
    assert 0 <= expected <= 2


def test_transrate_counts_each_class_the_same():
    features, labels = task()
    z = features - features.mean(axis=0)
    z = z / np.linalg.norm(z, axis=1, keepdims=True)

    def rate(rows):
        values = np.linalg.svd(rows, compute_uv=False) ** 2
        return np.sum(np.log1p(values / (len(rows) * 1e-4))) / 2

    expected = rate(z) - np.mean([rate(z[labels == k]) for k in range(3)])
    assert transrate(features, labels) == pytest.approx(expected)


def predictions(rows=50, classes=4):
    logits = RANDOM.normal(size=(rows, classes))
    theta = np.exp(logits)
    return theta / theta.sum(axis=1, keepdims=True), RANDOM.permutation(
        np.arange(rows) % 3
    )


def test_leep_is_its_definition_by_loops():
    theta, y = predictions()
    n, z = theta.shape
    joint = np.zeros((3, z))
    for i in range(n):
        joint[y[i]] += theta[i] / n
    total = 0.0
    for i in range(n):
        total += np.log(
            sum(joint[y[i], k] / joint[:, k].sum() * theta[i, k] for k in range(z))
        )
    assert leep(theta, y) == pytest.approx(total / n, rel=1e-12)


def test_nce_is_minus_the_conditional_entropy():
    theta, y = predictions()
    z = theta.argmax(axis=1)
    joint = np.histogram2d(y, z, bins=[np.arange(4), np.arange(5)])[0] / len(y)
    mass = joint.sum(axis=0)
    entropy = scipy.stats.entropy(joint.ravel()) - scipy.stats.entropy(mass)
    assert nce(theta, y) == pytest.approx(-entropy, rel=1e-12)


def test_one_hot_predictions_make_leep_and_nce_one_and_zero_where_they_decide():
    y = np.arange(30) % 3
    hard = np.eye(4)[RANDOM.integers(0, 4, 30)]
    assert leep(hard, y) == pytest.approx(nce(hard, y), rel=1e-12)
    assert leep(np.eye(3)[(y + 1) % 3], y) == pytest.approx(0, abs=1e-12)
    # A source class that is never predicted has no mass, and makes no NaN.
    assert leep(np.eye(5)[y], y) == pytest.approx(0, abs=1e-12)
    assert confidence(hard) == 1


def test_nleep_is_leep_of_a_mixture_on_principal_axes():
    from sklearn.mixture import GaussianMixture

    features, y = task(60, 8)
    centred = features - features.mean(axis=0)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    held = np.cumsum(sizes**2) / np.sum(sizes**2)
    reduced = centred @ axes[: np.searchsorted(held, 0.8) + 1].T
    mixture = GaussianMixture(6, random_state=0).fit(reduced)
    expected = leep(mixture.predict_proba(reduced), y)
    assert nleep(features, y) == pytest.approx(expected, abs=1e-6)
    # Clusters that are the classes say all; of noise they say little.
    apart, y = task(120, 6, apart=30.0)
    assert nleep(apart, y, components=3) == pytest.approx(0, abs=1e-6)
    assert nleep(RANDOM.normal(size=(120, 6)), y, components=3) < -0.9


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda: leep(np.ones((3, 2)), [0, 1, 1]), "sum to one"),
        (lambda: leep(np.eye(3), [0, 1]), r"\(3, 3\) for 2 labels"),
        (lambda: nce(np.eye(2), [-1, 0]), "start at 0"),
        (lambda: logme(np.full((4, 2), np.nan), [0, 1, 0, 1]), "not finite"),
        (lambda: nleep(np.full((4, 2), np.nan), [0, 1, 0, 1]), "give finite"),
        (lambda: nleep(np.ones((4, 2)), [0, 1, 0, 1]), "all rows are equal"),
        (lambda: h_score(np.eye(4), [0, 2, 0, 2]), r"without \[1\]"),
        (lambda: parc(np.eye(4), [0, 0, 0, 0]), "one class"),
        (
            lambda: gaussian_class_separation(np.eye(3), [0, 1, 1]),
            r"classes \[0\] have one row",
        ),
    ],
)
def test_what_is_wrong_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
