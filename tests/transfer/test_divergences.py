"""Every divergence against an independent reference, and what its record promises."""

import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest
import scipy.spatial.distance as distance
import scipy.stats

from fusion_jax.transfer.measure import Known
from fusion_jax.transfer.moments import Moments, moments_of
from fusion_jax.transfer.pairs import _alike, _program, all_measures, all_pairs
from fusion_jax.transfer.sample_divergences import (
    median_bandwidth,
    squared_distances,
)
from fusion_jax.transfer.study import groups_of
from fusion_jax.transfer.table import MEASURES
from fusion_jax.transfer.transport import regularised_transport, unit_directions

RANDOM = np.random.default_rng(0)
TASKS, WORDS, ROWS, WIDTH = 5, 40, 30, 6
GAMMA, EPSILON, DIRECTIONS = 0.13, 2.0, unit_directions(WIDTH, 17, seed=3)


def representations(reads, random=RANDOM):
    """Tasks as the measure reads them, stacked, with the samples they are of."""
    counts = random.poisson(3, (TASKS, WORDS)) + 0.01
    samples = random.normal(size=(TASKS, ROWS, WIDTH)) * random.uniform(
        0.5, 2, (TASKS, 1, WIDTH)
    ) + random.normal(size=(TASKS, 1, WIDTH))
    if reads == "terms":
        return counts / counts.sum(axis=1, keepdims=True)
    if reads == "presence":
        return (counts > 2).astype(float)
    if reads == "tfidf":
        return counts * random.uniform(1, 3, WORDS)
    if reads == "module":
        return random.normal(size=(TASKS, 12))
    return stacked(samples) if reads == "moments" else samples


def stacked(samples):
    found = [moments_of(sample) for sample in samples]
    return Moments(
        *(np.stack([np.asarray(x) for x in part]) for part in zip(*found, strict=True))
    )


def options(name):
    given = {
        "mmd": {"gamma": GAMMA},
        "sinkhorn": {"epsilon": EPSILON},
        "sliced_wasserstein": {"directions": DIRECTIONS},
    }
    return given.get(name, {})


def gaussian_w2(x, y):
    root = ot.gaussian.bures_wasserstein_distance(
        x.mean, y.mean, x.covariance, y.covariance
    )
    return root**2


def gaussian_overlap(x, y):
    """-ln of the integral of sqrt(p q) of two Gaussians, by their densities."""
    pooled = (x.shrunk + y.shrunk) / 2
    d = x.mean - y.mean
    top = np.linalg.det(x.shrunk) ** 0.25 * np.linalg.det(y.shrunk) ** 0.25
    return (
        -np.log(top / np.sqrt(np.linalg.det(pooled)))
        + d @ np.linalg.inv(pooled) @ d / 8
    )


def lda_separation(x, y):
    w = np.linalg.inv((x.shrunk + y.shrunk) / 2) @ (x.mean - y.mean)
    return (w @ (x.mean - y.mean)) ** 2 / (w @ ((x.shrunk + y.shrunk) / 2) @ w)


def kernel_mmd(x, y):
    from sklearn.metrics.pairwise import rbf_kernel

    within = [rbf_kernel(a, gamma=GAMMA) for a in (x, y)]
    off = [(k.sum() - len(k)) / (len(k) * (len(k) - 1)) for k in within]
    return off[0] + off[1] - 2 * rbf_kernel(x, y, gamma=GAMMA).mean()


def sliced_by_pot(x, y):
    return ot.sliced_wasserstein_distance(x, y, projections=DIRECTIONS.T) ** 2


def transport_by_scaling(x, y):
    """Sinkhorn's iterations as they are, until nothing moves."""

    def cost(a, b):
        kernel = np.exp(-distance.cdist(a, b, "sqeuclidean") / EPSILON) / len(b)
        v = np.ones(len(b))
        for _ in range(20_000):
            u = 1 / (kernel @ v)
            before, v = v, 1 / (kernel.T @ u)
            if np.abs(v / before - 1).max() < 1e-13:
                break
        return EPSILON * (np.log(u).mean() + np.log(v).mean())

    return cost(x, y) - (cost(x, x) + cost(y, y)) / 2


def ridge_scores(x, y):
    """What scikit-learn's ridge says of the texts at odd places."""
    from sklearn.linear_model import Ridge

    train = np.concatenate([x[::2], y[::2]])
    penalty = np.sum((train - train.mean(axis=0)) ** 2) / WIDTH
    target = np.repeat([1.0, -1.0], len(train) // 2)
    fitted = Ridge(alpha=penalty).fit(train, target)
    return fitted.predict(x[1::2]), fitted.predict(y[1::2])


def separated(x, y):
    left, right = ridge_scores(x, y)
    return 2 * (1 - (np.mean(left < 0) + np.mean(right > 0)))


def separated_softly(x, y):
    left, right = ridge_scores(x, y)
    wrong = [np.clip((1 - f) / 2, 0, 1).mean() for f in (left, -right)]
    return 2 * (1 - sum(wrong))


def energy_by_cdist(x, y):
    means = [distance.cdist(a, b).mean() for a, b in ((x, y), (x, x), (y, y))]
    return 2 * means[0] - means[1] - means[2]


REFERENCES = {
    "kl": scipy.stats.entropy,
    "kl_reversed": lambda p, q: scipy.stats.entropy(q, p),
    "jensen_shannon": lambda p, q: distance.jensenshannon(p, q, base=2) ** 2,
    "renyi": lambda p, q: np.log(np.sum(p**0.99 * q**0.01)) / -0.01,
    "bhattacharyya": lambda p, q: -np.log(np.sum(np.sqrt(p * q))),
    "total_variation": lambda p, q: distance.cityblock(p, q) / 2,
    "term_euclidean": distance.euclidean,
    "term_cosine": distance.cosine,
    "vocabulary_overlap": lambda x, y: distance.jaccard(x > 0, y > 0),
    "tfidf_cosine": distance.cosine,
    "mean_cosine": lambda x, y: distance.cosine(x.mean, y.mean),
    "mean_euclidean": lambda x, y: distance.euclidean(x.mean, y.mean),
    "coral": lambda x, y: (
        np.linalg.norm(x.covariance - y.covariance) ** 2 / (4 * WIDTH**2)
    ),
    "bures": gaussian_w2,
    "gaussian_bhattacharyya": gaussian_overlap,
    "fisher_discriminant": lda_separation,
    "mmd": kernel_mmd,
    "energy": energy_by_cdist,
    "sliced_wasserstein": sliced_by_pot,
    "sinkhorn": transport_by_scaling,
    "proxy_a": separated,
    "proxy_a_margin": separated_softly,
    "module_cosine": distance.cosine,
    "module_euclidean": distance.euclidean,
}


def one(tasks, i):
    return jax.tree.map(lambda x: np.asarray(x)[i], tasks)


def test_every_measure_has_a_reference():
    assert REFERENCES.keys() == MEASURES.keys()


@pytest.mark.parametrize("name", MEASURES)
def test_all_pairs_are_those_of_the_reference(name):
    tasks = representations(MEASURES[name].reads)
    table = all_pairs(name, tasks, options=options(name), chunk=4)
    for s in range(TASKS):
        for t in range(TASKS):
            # A task and itself are the promise 'zero'; references divide by it.
            if s != t:
                expected = REFERENCES[name](one(tasks, s), one(tasks, t))
                np.testing.assert_allclose(table[s, t], expected, rtol=1e-9)


@pytest.mark.parametrize("name", MEASURES)
def test_symmetric_measures_are_so_to_the_bit_and_the_others_are_not(name):
    tasks = representations(MEASURES[name].reads)
    table = all_pairs(name, tasks, options=options(name))
    both_ways = MEASURES[name].symmetric
    assert np.array_equal(table, table.T) == both_ways


@pytest.mark.parametrize("name", MEASURES)
def test_what_a_record_promises_holds(name):
    measure = MEASURES[name]
    tasks = representations(measure.reads)
    table = all_pairs(name, tasks, options=options(name))
    scale = np.abs(table).max()
    if "zero" in measure.promises:
        np.testing.assert_allclose(np.diag(table), 0, atol=1e-9 * max(scale, 1))
    if "positive" in measure.promises:
        assert (table >= -1e-9 * scale).all()
        assert (table[~np.eye(TASKS, dtype=bool)] > 0).all()
    if "duplication" in measure.promises:
        twice = np.concatenate([tasks, tasks], axis=1)
        np.testing.assert_allclose(
            all_pairs(name, twice, options=options(name)), table, rtol=1e-9, atol=1e-12
        )
    if "rotation" in measure.promises:
        samples = representations("sample")
        turn = scipy.stats.ortho_group.rvs(WIDTH, random_state=1)
        made = stacked if measure.reads == "moments" else np.asarray
        np.testing.assert_allclose(
            all_pairs(name, made(samples @ turn), options=options(name)),
            all_pairs(name, made(samples), options=options(name)),
            rtol=1e-7,
            atol=1e-9,
        )


@pytest.mark.parametrize("group", groups_of(MEASURES), ids=lambda group: group[0])
def test_measures_of_one_program_give_what_each_gives_alone(group):
    tasks = representations(MEASURES[group[0]].reads)
    given = {name: options(name) for name in group}
    together = all_measures(group, tasks, options=given)
    assert list(together) == group
    for name in group:
        alone = all_pairs(name, tasks, options=options(name))
        np.testing.assert_allclose(together[name], alone, rtol=1e-12, atol=1e-13)


def test_one_program_computes_what_measures_share_once():
    group = ["gaussian_bhattacharyya", "fisher_discriminant"]
    tasks = representations("moments")
    places = np.zeros((1, 2), np.int32)

    def roots(names):
        with jax.enable_x64(True):
            lowered = _program(_alike(names), 1).lower(tasks, places, [{}] * len(names))
            return lowered.compile().as_text().count("lapack_dpotrf")

    # One more than for the discriminant: each task's own determinant.
    assert roots(group) == roots(group[1:]) + 1


def test_one_program_takes_measures_of_one_kind():
    tasks = representations("terms")
    for names in (["kl", "jensen_shannon"], ["term_cosine", "mean_cosine"], []):
        with pytest.raises(ValueError, match=r"one program takes|unknown measure"):
            all_measures(names, tasks)


@pytest.mark.parametrize("chunk", [1, 3, 64])
@pytest.mark.parametrize("name", ["kl", "bures", "mmd"])
def test_chunks_and_devices_change_nothing(name, chunk):
    tasks = representations(MEASURES[name].reads)
    alone = all_pairs(name, tasks, options=options(name), chunk=chunk)
    mesh = jax.make_mesh((8,), ("pairs",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("pairs"))
    np.testing.assert_allclose(
        all_pairs(name, tasks, options=options(name), chunk=chunk, sharding=spread),
        alone,
        rtol=1e-12,
        atol=1e-14,
    )


def test_known_answers():
    disjoint = np.array([[1 - 1e-12, 1e-12], [1e-12, 1 - 1e-12]])
    assert all_pairs("jensen_shannon", disjoint)[0, 1] == pytest.approx(1, abs=1e-9)
    tasks = representations("terms")
    half = all_pairs("renyi", tasks, options={"alpha": 0.5})
    np.testing.assert_allclose(half / 2, all_pairs("bhattacharyya", tasks), rtol=1e-9)
    near = all_pairs("renyi", tasks, options={"alpha": 0.999})
    off = ~np.eye(TASKS, dtype=bool)
    np.testing.assert_allclose(near[off], all_pairs("kl", tasks)[off], rtol=0.01)
    shift, unit = np.arange(WIDTH) / 3, np.eye(WIDTH)
    means = np.stack([np.zeros(WIDTH), shift])
    both = Moments(means, *[np.stack([unit, unit])] * 3)
    for name in ("bures", "fisher_discriminant"):
        assert all_pairs(name, both)[0, 1] == pytest.approx(shift @ shift)
    sample = RANDOM.normal(size=(ROWS, WIDTH))
    moved = all_pairs(
        "sliced_wasserstein",
        np.stack([sample, sample + shift]),
        options={"directions": DIRECTIONS},
    )
    assert moved[0, 1] == pytest.approx(np.mean((DIRECTIONS @ shift) ** 2))


def test_unbiased_mmd_has_mean_zero_and_grows_with_a_shift():
    draws = RANDOM.normal(size=(40, ROWS, WIDTH))
    off = ~np.eye(40, dtype=bool)
    found = all_pairs("mmd", draws, options={"gamma": GAMMA})[off]
    assert found.min() < 0 < found.max()
    assert abs(found.mean()) < 4 * found.std() / np.sqrt(40)
    shifted = np.stack([draws[0], *(draws[1] + s for s in (0.0, 0.5, 1.0, 2.0))])
    row = all_pairs("mmd", shifted, options={"gamma": GAMMA})[0, 1:]
    assert (np.diff(row) > 0).all()


def test_covariances_of_fewer_rows_than_dimensions_stay_finite():
    wide = [moments_of(RANDOM.normal(size=(5, 40)) + k) for k in range(3)]
    both = Moments(
        *(np.stack([np.asarray(x) for x in part]) for part in zip(*wide, strict=True))
    )
    for name in ("bures", "gaussian_bhattacharyya", "fisher_discriminant", "coral"):
        assert np.isfinite(all_pairs(name, both)).all()


@pytest.mark.parametrize("rows", [5, 40, 60])
def test_moments_hold_a_factor_of_the_covariance(rows):
    found = moments_of(RANDOM.normal(size=(rows, 40)))
    assert found.factor.shape == (40, min(rows, 40))
    np.testing.assert_allclose(
        found.factor @ found.factor.T, found.covariance, atol=1e-12
    )


def test_transport_of_samples_far_apart_is_a_number_and_of_one_sample_is_zero():
    sample = RANDOM.normal(size=(ROWS, WIDTH))
    far = np.stack([sample, sample + 1e3])
    table = all_pairs("sinkhorn", far, options={"epsilon": 1.0})
    assert table[0, 1] == pytest.approx(WIDTH * 1e6)
    np.testing.assert_allclose(np.diag(table), 0, atol=1e-9)


def test_samples_of_two_sizes_are_not_transported():
    sample = RANDOM.normal(size=(ROWS, WIDTH))
    with pytest.raises(ValueError, match=r"regularised_transport: samples of 30 and 2"):
        regularised_transport(jnp.asarray(sample), jnp.asarray(sample[:29]), EPSILON)


def test_transport_is_that_of_ott():
    from ott.geometry.pointcloud import PointCloud
    from ott.tools.sinkhorn_divergence import sinkhorn_divergence

    x, y = RANDOM.normal(size=(2, ROWS, WIDTH))
    with jax.enable_x64(True):
        expected, _ = sinkhorn_divergence(
            PointCloud,
            jnp.asarray(x),
            jnp.asarray(y + 1),
            epsilon=EPSILON,
            solve_kwargs={"threshold": 1e-9},
        )
    found = all_pairs("sinkhorn", np.stack([x, y + 1]), options={"epsilon": EPSILON})
    assert found[0, 1] == pytest.approx(float(expected), rel=1e-8)


def test_a_classifier_that_parts_all_saturates_and_its_margin_does_not():
    sample = RANDOM.normal(size=(ROWS, WIDTH))
    tasks = np.stack([sample, *(sample[::-1] + shift for shift in (8, 16, 32))])
    assert all_pairs("proxy_a", tasks)[0, 1:].tolist() == [2, 2, 2]
    margins = all_pairs("proxy_a_margin", tasks)[0, 1:]
    assert len(set(margins.round(6))) == 3 and (margins < 2).all()
    # Two draws of one distribution cannot be told apart.
    draws = np.random.default_rng(3).normal(size=(2, 400, WIDTH))
    assert abs(all_pairs("proxy_a", draws)[0, 1]) < 0.3


@pytest.mark.parametrize("rows", [8, 40])
def test_the_classifier_is_one_for_few_texts_and_for_many(rows):
    x, y = RANDOM.normal(size=(2, rows, WIDTH))
    y += 0.4
    found = all_pairs("proxy_a_margin", np.stack([x, y]))[0, 1]
    assert found == pytest.approx(separated_softly(x, y), rel=1e-9)


def test_equal_rows_are_at_no_distance_however_far_from_the_origin():
    sample = RANDOM.normal(size=(ROWS, WIDTH))
    with jax.enable_x64(True):
        found = np.asarray(squared_distances(sample + 1e4, sample + 1e4))
    np.testing.assert_array_equal(np.diag(found), 0)
    expected = distance.cdist(sample, sample, "sqeuclidean")
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_one_bandwidth_is_of_the_median_distance():
    samples = representations("sample")
    pool = samples.reshape(-1, WIDTH)
    sigma = np.median(distance.pdist(pool))
    assert median_bandwidth(samples) == pytest.approx(1 / (2 * sigma**2))
    with pytest.raises(ValueError, match="the same vector"):
        median_bandwidth(np.zeros((2, 10, 3)))


def test_what_cannot_be_measured_is_named_and_never_zero():
    tasks = representations("tfidf")
    tasks[3] = 0
    with pytest.raises(ValueError, match=r"tfidf_cosine: not finite .*3"):
        all_pairs("tfidf_cosine", tasks)
    with pytest.raises(ValueError, match="unknown measure 'jsd'; there are kl"):
        all_pairs("jsd", tasks)
    with pytest.raises(ValueError, match="2 of 4 vectors are not finite"):
        moments_of(np.array([[1.0, 2], [np.nan, 1], [3, np.inf], [0, 0]]))
    with pytest.raises(ValueError, match="n of 2 or more"):
        moments_of(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="give both one size"):
        MEASURES["sliced_wasserstein"].function(
            Known(None, jnp.zeros((3, 2))),
            Known(None, jnp.zeros((4, 2))),
            directions=jnp.ones((1, 2)),
        )
