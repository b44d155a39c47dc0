"""Width from weights alone: what the leading directions of a layer are in the other."""

import numpy as np

from fusion_jax.peft.port_host import LAYER, Host, kernel_of, place_in
from fusion_jax.peft.port_maps import Map, Maps, NoMeaning


def subspace_maps(source: Host, target: Host, rank: int = 64) -> Maps:
    """Maps that carry the leading singular directions of a layer onto the other's.

    With W ~ U S V^T of rank r in both hosts, Q = argmin_{Q^T Q = I} |U_t Q - E U_s| and

        read = U_t Q U_s^T + (I - U_t U_t^T) E

    and likewise with V for the output; E is the identity, with zeros for what one host
    has less. What lies outside of the leading directions stays where it is, so that
    equal hosts give the module back. No text is read.

    Args:
      source: the origin's host; its kernels are read.
      target: the receiver's host; its kernels are read.
      rank: r, at most the smaller side of a layer.

    Reference: after Cross-LoRA, 2025, arXiv 2508.05232, which cuts off the rest.
    """
    bases: dict[tuple[int, str, str], np.ndarray] = {}
    kept: dict[tuple[str, str, str], Map] = {}

    def basis(host: Host, path: str, side: str) -> np.ndarray:
        """The leading directions of a side, [d, r] with orthonormal columns."""
        path, side = place_in(host, path, side)
        layer = LAYER.fullmatch(path)
        if layer and layer[3].endswith("norm"):
            # A norm has no directions; what its layer reads of the stream has.
            path, side = f"{layer[1]}layer_{layer[2]}/attention/query", "in"
        name = (id(host), path, side)
        if name not in bases:
            kernel = kernel_of(host, path)
            if kernel is None:
                raise NoMeaning(
                    f"{path}: {host.name} has no kernel there whose directions could "
                    "be compared; choose another method"
                )
            if side == "out":
                kernel = kernel.T
            # Of a side that is longer than the other, such as a table of words, the
            # decomposition of the small Gram matrix does.
            values, vectors = np.linalg.eigh(kernel @ kernel.T)
            bases[name] = vectors[:, np.argsort(values)[::-1][:rank]]
        return bases[name]

    def maps(path: str, source_path: str, side: str) -> Map:
        name = (path, source_path, side)
        if name not in kept:
            u_t, u_s = basis(target, path, side), basis(source, source_path, side)
            size = min(u_t.shape[1], u_s.shape[1])
            u_t, u_s = u_t[:, :size], u_s[:, :size]
            eye = np.eye(len(u_t), len(u_s))
            left, _, right = np.linalg.svd(u_t.T @ eye @ u_s)
            read = eye + u_t @ ((left @ right) @ u_s.T - u_t.T @ eye)
            # A rotation of the leading directions: what reads also writes.
            kept[name] = Map(None, read, read.T)
        return kept[name]

    return maps
