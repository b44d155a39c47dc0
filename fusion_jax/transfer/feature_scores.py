"""Scores of a labelled target by the features that a source's encoder gives its rows.

Larger is better. As `prediction_scores`, they look at target labels. All are computed
in float64 on the host.
"""

import numpy as np

_ROUNDS = 11  # of LogME's fixed point, as the authors have it


def logme(features: np.ndarray, labels: np.ndarray) -> float:
    """Log evidence of a linear model a class, over n; the mean over classes.

    t ~ N(0, I / beta + F F' / alpha) with t the indicator of a class, and alpha, beta
    by the fixed point of MacKay:
      lambda = alpha / beta, gamma = sum_i s_i / (s_i + lambda),
      alpha = gamma / (m'm), beta = (n - gamma) / ||t - F m||^2

    The sum of logarithms is over all D eigenvalues of F'F, zeros included; published
    code leaves those out where D > n, and is too large by (D - n) ln(alpha) / (2 n).

    Args:
      features: [n, D].
      labels: [n] class ids; every class from 0 to the largest occurs.

    Reference: You et al. 2021, arXiv:2102.11005.
    """
    f, y = _checked(features, labels)
    n, width = f.shape
    u, s, _ = np.linalg.svd(f, full_matrices=False)
    sigma = s**2
    evidence = []
    for k in range(y.max() + 1):
        t = (y == k).astype(np.float64)
        inside = (u.T @ t) ** 2
        outside = max(float(t @ t - inside.sum()), 0.0)
        alpha = beta = 1.0
        for _ in range(_ROUNDS):
            ratio = alpha / beta
            gamma = np.sum(sigma / (sigma + ratio))
            length = np.sum(sigma * inside / (ratio + sigma) ** 2)
            rest = np.sum(inside / (1 + sigma / ratio) ** 2) + outside
            alpha = gamma / (length + 1e-5)
            beta = (n - gamma) / (rest + 1e-5)
            if abs(alpha / beta - ratio) <= 1e-3 * ratio:
                break
        # With the alpha and beta that are reported, not those of the round before.
        ratio = alpha / beta
        length = np.sum(sigma * inside / (ratio + sigma) ** 2)
        rest = np.sum(inside / (1 + sigma / ratio) ** 2) + outside
        logs = np.sum(np.log(alpha + beta * sigma))
        logs += (width - len(sigma)) * np.log(alpha)
        total = width * np.log(alpha) + n * np.log(beta) - logs
        total -= beta * rest + alpha * length + n * np.log(2 * np.pi)
        evidence.append(total / (2 * n))
    return float(np.mean(evidence))


def h_score(features: np.ndarray, labels: np.ndarray) -> float:
    """tr(cov(F)^+ cov(G)), G_i the mean feature of row i's class.

    Args:
      features: [n, D], n well above D; else take `shrunk_h_score`.
      labels: [n].

    Returns:
      In [0, C - 1].

    Reference: Bao et al. 2019, doi:10.1109/ICIP.2019.8803726.
    """
    f, y = _checked(features, labels)
    between = np.cov(_class_means(f, y)[y], rowvar=False).reshape((f.shape[1],) * 2)
    whole = np.cov(f, rowvar=False).reshape(between.shape)
    return float(np.trace(np.linalg.pinv(whole, rcond=1e-15, hermitian=True) @ between))


def shrunk_h_score(features: np.ndarray, labels: np.ndarray) -> float:
    """tr(((1 - a) C + a tr(C) / D I)^+ (1 - a) C_b), a of Ledoit and Wolf.

    C with 1 / n, C_b (the covariance of class means) with 1 / (n - 1).

    Reference: Ibrahim et al. 2022, arXiv:2110.06893.
    """
    from sklearn.covariance import ledoit_wolf

    f, y = _checked(features, labels)
    centred = f - f.mean(axis=0)
    shrunk, weight = ledoit_wolf(centred, assume_centered=True)
    between = np.cov(_class_means(centred, y)[y], rowvar=False).reshape(shrunk.shape)
    return float(
        np.trace(np.linalg.pinv(shrunk, hermitian=True) @ between) * (1 - weight)
    )


def transrate(features: np.ndarray, labels: np.ndarray, epsilon: float = 1e-4) -> float:
    """R(Z) - mean_k R(Z_k), R(Z) = ln|I + Z'Z / (n eps)| / 2.

    Rows are centred and brought to unit length first, since the score depends on scale;
    each class counts the same.

    Args:
      features: [n, D].
      labels: [n].
      epsilon: eps.

    Reference: Huang et al. 2022, arXiv:2106.09362.
    """
    f, y = _checked(features, labels)
    z = f - f.mean(axis=0)
    lengths = np.linalg.norm(z, axis=1, keepdims=True)
    z = np.divide(z, lengths, out=np.zeros_like(z), where=lengths > 0)

    def rate(rows: np.ndarray) -> float:
        gram = rows.T @ rows / (len(rows) * epsilon)
        return float(np.linalg.slogdet(np.eye(len(gram)) + gram)[1] / 2)

    return rate(z) - float(np.mean([rate(z[y == k]) for k in range(y.max() + 1)]))


def gaussian_class_separation(
    features: np.ndarray, labels: np.ndarray, components: int = 64
) -> float:
    """GBC: -sum_{k != l} exp(-D_B(k, l)) of class Gaussians after PCA.

    D_B is the Bhattacharyya distance of `moments.gaussian_bhattacharyya`, with shrunk
    covariances and determinants by their logarithms.

    Args:
      features: [n, D]; every class has two rows or more.
      labels: [n].
      components: of the PCA, at most n and D.

    Reference: Pandy et al. 2022, arXiv:2111.12780.
    """
    from sklearn.covariance import ledoit_wolf

    f, y = _checked(features, labels)
    small = [k for k in range(y.max() + 1) if (y == k).sum() < 2]
    if small:
        raise ValueError(f"labels: classes {small} have one row; each needs two")
    z = _principal(f, components)
    means = [z[y == k].mean(axis=0) for k in range(y.max() + 1)]
    spreads = [ledoit_wolf(z[y == k])[0] for k in range(y.max() + 1)]
    total = 0.0
    for k in range(len(means)):
        for other in range(len(means)):
            if k != other:
                pooled = (spreads[k] + spreads[other]) / 2
                d = means[k] - means[other]
                logs = [
                    np.linalg.slogdet(c)[1]
                    for c in (pooled, spreads[k], spreads[other])
                ]
                distance = d @ np.linalg.solve(pooled, d) / 8
                distance += (logs[0] - (logs[1] + logs[2]) / 2) / 2
                total -= np.exp(-distance)
    return float(total)


def parc(features: np.ndarray, labels: np.ndarray, components: int = 32) -> float:
    """Spearman's rho of distances between rows: of features and of labels.

    1 - corr(z_i, z_j) against 1 - corr(e_i, e_j), z standardised after PCA, e one-hot;
    over i < j. The signs of principal axes are free and would change the score, so the
    largest weight of each is made positive. Memory is n^2: give it some hundred rows.

    Args:
      features: [n, D].
      labels: [n], of two classes or more.
      components: of the PCA.

    Returns:
      In [-1, 1].

    Reference: Bolya et al. 2021, arXiv:2111.06977.
    """
    from scipy.stats import rankdata

    f, y = _checked(features, labels)
    if y.max() < 1:
        raise ValueError("labels: one class; distances between labels need two")
    z = _principal(f, components)
    deviations = z.std(axis=0)
    z = np.divide(z, deviations, out=np.zeros_like(z), where=deviations > 1e-12)
    upper = np.triu_indices(len(z), 1)
    far = 1 - np.atleast_2d(np.corrcoef(z))[upper]
    # One-hot rows have one distance if they differ: computed, rounding would part ties.
    other = (y[upper[0]] != y[upper[1]]).astype(np.float64)
    ranks = rankdata(far), rankdata(other)
    return float(np.atleast_2d(np.corrcoef(*ranks))[0, 1])


def _principal(f: np.ndarray, components: int) -> np.ndarray:
    """The first principal components of rows, [n, at most `components`]."""
    centred = f - f.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:components]
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    return centred @ (axes * np.where(largest < 0, -1, 1)).T


def _class_means(f: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.stack([f[y == k].mean(axis=0) for k in range(y.max() + 1)])


def _checked(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    f, y = np.asarray(features, np.float64), np.asarray(labels, np.int64)
    if f.ndim != 2 or len(f) != len(y) or len(y) < 2:
        raise ValueError(f"features {f.shape} for {len(y)} labels; give [n, D] and [n]")
    if not np.isfinite(f).all():
        raise ValueError("features: some are not finite; look at the encoder")
    absent = sorted(set(range(y.max() + 1)) - set(y.tolist()))
    if y.min() < 0 or absent:
        raise ValueError(
            f"labels: class ids 0 to {y.max()} without {absent}; number the classes "
            "that occur"
        )
    return f, y
