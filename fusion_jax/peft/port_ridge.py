"""Width by a linear map: ridge regression of hidden states around the assignment."""

import numpy as np

from fusion_jax.peft.port_correlation import Pairs, correlation_maps
from fusion_jax.peft.port_host import Host
from fusion_jax.peft.port_maps import Map, Maps
from fusion_jax.peft.port_spaces import OWN, PROBES, STREAM, Space, seen, space_of


def ridge_maps(source: Host, target: Host, pairs: Pairs, ridge: float = 0.1) -> Maps:
    """Dense maps between spaces, drawn towards the assignment of `correlation_maps`.

    read = argmin |X_t R - X_s|^2 + l |R - P|^2 and write = argmin |Y_s W - Y_t|^2
    + l |W - P^T|^2, where P is the assignment as a matrix [d_t, d_s] and l = ridge x
    the mean diagonal of X^T X. Ordinary ridge draws towards zero, and so gives a part
    of the module away even between equal hosts; this one returns it whole.

    Args:
      source: the origin's host, with states.
      target: the receiver's host, with states over the same tokens.
      pairs: which layers correspond.
      ridge: strength, above 0.
    """
    assigned = correlation_maps(source, target, pairs)
    kept: dict[tuple, Map] = {}

    def maps(path: str, source_path: str, side: str) -> Map:
        space = space_of(target, source, path, source_path, side)
        name = space if space.kind == OWN else (space.kind, space.pair)
        if name not in kept:
            index = assigned(path, source_path, side).index
            assert index is not None
            x_t, x_s = _states(source, target, pairs, space)
            chosen = _matrix(index, x_s.shape[1])
            read = chosen + _solve(x_t, x_s - x_t @ chosen, ridge)
            write = chosen.T + _solve(x_s, x_t - x_s @ chosen.T, ridge)
            kept[name] = Map(None, read, write)
        return kept[name]

    return maps


def _states(
    source: Host, target: Host, pairs: Pairs, space: Space
) -> tuple[np.ndarray, np.ndarray]:
    """All that was seen of a space in (receiver, origin), [rows, d] each."""
    if space.kind == OWN:
        return (
            seen(target, space.path, space.side),
            seen(source, space.source_path, space.side),
        )
    if space.kind == STREAM:
        layers = [(j, i) for j, taken in enumerate(pairs) for i in taken]
    else:
        assert space.pair is not None
        layers = [space.pair]
    probes = [(j, i, *probe) for j, i in layers for probe in PROBES[space.kind]]
    return (
        np.concatenate(
            [seen(target, f"encoder/layer_{j}/{p}", s) for j, _, p, s in probes]
        ),
        np.concatenate(
            [seen(source, f"encoder/layer_{i}/{p}", s) for _, i, p, s in probes]
        ),
    )


def _matrix(index: np.ndarray, sources: int) -> np.ndarray:
    """An assignment as a matrix [d_t, d_s]."""
    matrix = np.zeros((len(index), sources))
    matched = index >= 0
    matrix[np.flatnonzero(matched), index[matched]] = 1
    return matrix


def _solve(x: np.ndarray, y: np.ndarray, ridge: float) -> np.ndarray:
    """(X^T X + l I)^-1 X^T Y."""
    gram = x.T @ x
    gram[np.diag_indices_from(gram)] += ridge * max(np.trace(gram) / len(gram), 1e-12)
    return np.linalg.solve(gram, x.T @ y)
