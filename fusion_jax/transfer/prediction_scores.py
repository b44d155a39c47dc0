"""Scores of a labelled target by what a source's classifier says of its rows.

Larger is better. They look at target labels, so they answer another question than a
divergence does; give them rows apart from those that a transfer is measured on.
All are computed in float64 on the host.
"""

import numpy as np


def leep(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """mean_i ln sum_z P(y_i | z) theta_iz, with P(y, z) = mean_i theta_iz [y_i = y].

    Args:
      probabilities: theta [n, Z], of the source's classes on target rows.
      labels: [n], class ids of the target.

    Returns:
      At most 0. A source class without any mass counts for nothing.

    Raises:
      ValueError: shapes that do not fit, rows that do not sum to one.

    Reference: Nguyen et al. 2020, arXiv:2002.12462.
    """
    theta, y = _checked(probabilities, labels)
    given = _conditional(theta, y)
    return float(np.mean(np.log(np.sum(given[y] * theta, axis=1))))


def nce(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """-H(Y | Z) with z_i = argmax_z theta_iz, in nats.

    Args:
      probabilities: [n, Z]; only the largest of a row counts.
      labels: [n].

    Returns:
      At most 0, which is reached where z determines y.

    Reference: Tran et al. 2019, arXiv:1908.08142.
    """
    theta, y = _checked(probabilities, labels)
    hard = np.eye(theta.shape[1])[np.argmax(theta, axis=1)]
    joint = np.eye(y.max() + 1)[y].T @ hard / len(y)
    given = _conditional(hard, y)
    seen = joint > 0
    return float(np.sum(joint[seen] * np.log(given[seen])))


def nleep(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    variance: float = 0.8,
    components: int | None = None,
    seed: int = 0,
) -> float:
    """LEEP of the clusters that a source's features of the target fall into.

    Principal axes that hold `variance` of the variance, then a mixture of Gaussians
    whose posteriors stand in the place of a source classifier's probabilities: a source
    needs no classifier.

    Args:
      features: [n, D] of target rows by the source's encoder.
      labels: [n].
      variance: share that is kept.
      components: of the mixture; None = the number of classes, at most n / 5 and at
        least n / 10.
      seed: of the mixture's start.

    Raises:
      ValueError: features are not finite or have no variance.

    Reference: Li et al. 2021, arXiv:2011.11200.
    """
    from sklearn.decomposition import PCA
    from sklearn.mixture import GaussianMixture

    f, y = np.asarray(features, np.float64), np.asarray(labels, np.int64)
    if f.ndim != 2 or len(f) != len(y) or len(f) < 2 or not np.isfinite(f).all():
        raise ValueError(f"features {f.shape}: give finite [n, D] for {len(y)} labels")
    if not np.ptp(f, axis=0).any():
        raise ValueError("features: all rows are equal; look at the encoder")
    reduced = PCA(variance, svd_solver="full").fit_transform(f)
    if components is None:
        classes = int(y.max()) + 1
        components = max(1, int(max(min(classes, 0.2 * len(f)), 0.1 * len(f))))
    mixture = GaussianMixture(components, random_state=seed).fit(reduced)
    return leep(mixture.predict_proba(reduced), y)


def confidence(probabilities: np.ndarray) -> float:
    """Mean of a source classifier's largest probability on target rows; no labels."""
    return float(np.mean(np.max(np.asarray(probabilities, np.float64), axis=1)))


def _conditional(theta: np.ndarray, y: np.ndarray) -> np.ndarray:
    """P(y | z), [C, Z]; 0 where z has no mass."""
    joint = np.eye(y.max() + 1)[y].T @ theta / len(y)
    mass = joint.sum(axis=0)
    return np.divide(joint, mass, out=np.zeros_like(joint), where=mass > 0)


def _checked(
    probabilities: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    theta, y = np.asarray(probabilities, np.float64), np.asarray(labels, np.int64)
    if theta.ndim != 2 or theta.shape[0] != len(y) or not len(y):
        raise ValueError(
            f"probabilities {theta.shape} for {len(y)} labels; give [n, Z] and [n]"
        )
    if not (np.isfinite(theta).all() and np.allclose(theta.sum(axis=1), 1, atol=1e-4)):
        raise ValueError("probabilities: every row must be finite and sum to one")
    if y.min() < 0:
        raise ValueError("labels: class ids start at 0")
    return theta, y
