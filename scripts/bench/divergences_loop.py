"""The divergences of two tasks as SciPy, scikit-learn and POT compute them."""

import numpy as np
import ot
import scipy.linalg
import scipy.spatial.distance as distance
import scipy.special
import scipy.stats
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import euclidean_distances, rbf_kernel


def mmd(x, y, gamma):
    """By scikit-learn's kernel."""
    within = []
    for sample in (x, y):
        kernel, n = rbf_kernel(sample, gamma=gamma), len(sample)
        within.append((kernel.sum() - n) / (n * (n - 1)))
    return sum(within) - 2 * rbf_kernel(x, y, gamma=gamma).mean()


def energy(x, y):
    """By scikit-learn's distances, which are faster than SciPy's cdist."""
    between, left, right = (
        euclidean_distances(a, b).mean() for a, b in ((x, y), (x, x), (y, y))
    )
    return 2 * between - left - right


def sliced_wasserstein(x, y, directions):
    """POT's is the root."""
    return float(ot.sliced_wasserstein_distance(x, y, projections=directions.T)) ** 2  # pyright: ignore[reportArgumentType]


def sinkhorn(x, y, epsilon):
    """By POT, with the entropy as in Feydy et al."""

    def cost(a, b):
        squares = ot.dist(a, b)
        uniform = np.full(len(a), 1 / len(a)), np.full(len(b), 1 / len(b))
        _, log = ot.sinkhorn(*uniform, squares, epsilon, log=True, stopThr=1e-9)
        return epsilon * (
            np.log(log["u"] / uniform[0]).mean() + np.log(log["v"] / uniform[1]).mean()
        )

    return cost(x, y) - (cost(x, x) + cost(y, y)) / 2


def bures(x, y):
    """By SciPy: POT's is NaN for covariances of fewer texts than dimensions."""
    values, vectors = scipy.linalg.eigh(x.covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = scipy.linalg.eigh(root @ y.covariance @ root, eigvals_only=True)
    traces = np.trace(x.covariance) + np.trace(y.covariance)
    spread = traces - 2 * np.sqrt(np.maximum(cross, 0)).sum()
    return np.sum((x.mean - y.mean) ** 2) + spread


def gaussian_bhattacharyya(x, y):
    """By LU decompositions."""
    pooled, d = (x.shrunk + y.shrunk) / 2, x.mean - y.mean
    logs = [np.linalg.slogdet(c)[1] for c in (pooled, x.shrunk, y.shrunk)]
    return d @ np.linalg.solve(pooled, d) / 8 + (logs[0] - (logs[1] + logs[2]) / 2) / 2


def fisher_discriminant(x, y):
    """SciPy's Mahalanobis distance, squared."""
    inverse = np.linalg.inv((x.shrunk + y.shrunk) / 2)
    return distance.mahalanobis(x.mean, y.mean, inverse) ** 2


def ridge_scores(x, y):
    """What scikit-learn's ridge says of the texts that it was not trained on."""
    train = np.concatenate([x[::2], y[::2]])
    penalty = np.sum((train - train.mean(axis=0)) ** 2) / train.shape[1]
    target = np.repeat([1.0, -1.0], len(train) // 2)
    fitted = Ridge(alpha=penalty).fit(train, target)
    return fitted.predict(x[1::2]), -fitted.predict(y[1::2])


CALLS = {
    "kl": lambda p, q: scipy.stats.entropy(p, q),
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
        np.linalg.norm(x.covariance - y.covariance) ** 2 / (4 * len(x.mean) ** 2)
    ),
    "bures": bures,
    "gaussian_bhattacharyya": gaussian_bhattacharyya,
    "fisher_discriminant": fisher_discriminant,
    "mmd": mmd,
    "energy": energy,
    "sliced_wasserstein": sliced_wasserstein,
    "sinkhorn": sinkhorn,
    "proxy_a": lambda x, y: 2 * (1 - sum(np.mean(f < 0) for f in ridge_scores(x, y))),
    "proxy_a_margin": lambda x, y: (
        2 * (1 - sum(np.mean(np.clip((1 - f) / 2, 0, 1)) for f in ridge_scores(x, y)))
    ),
}
"""Measure -> call."""
