"""One leaf of a module on its way to another host."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fusion_jax import trees
from fusion_jax.peft.port_host import Host, kernel_of
from fusion_jax.peft.port_leaves import Axis, Meaning, meaning_of
from fusion_jax.peft.port_maps import Maps, NoMeaning, factors_moved, moved


class Carry:
    """Takes single leaves across, by what their names mean."""

    def __init__(
        self,
        leaves: Mapping[str, Any],
        source: Host,
        target: Host,
        maps: Maps,
        magnitude: str,
        as_is: bool,
    ) -> None:
        """Takes what all leaves have in common.

        Args:
          leaves: of the module, by name.
          source: the module's host.
          target: the receiver.
          maps: between their widths.
          magnitude: of DoRA, as in `port`.
          as_is: whether leaves that replace the host's are copied as they are.
        """
        self.leaves, self.source, self.target = leaves, source, target
        self.maps, self.magnitude, self.as_is = maps, magnitude, as_is
        self._own = [trees.flatten(host.params) for host in (source, target)]

    def __call__(self, name: str, source_name: str) -> np.ndarray:
        """The leaf `source_name` of the module as the leaf `name` of the receiver's."""
        there, here = (meaning_of(one, self.leaves) for one in (name, source_name))
        value = np.asarray(self.leaves[source_name])
        if there.form == "whole":
            return self._whole(value, name, there, here)
        if there.form == "factors":
            return self._factors(value, name, there, here)
        base = None
        if there.own and not self.as_is:
            base = [
                np.asarray(leaves[leaf], np.float64)
                for leaves, leaf in zip(self._own, (source_name, name), strict=True)
            ]
            value = value.astype(np.float64) - base[0]
        for number, axis in enumerate(there.axes):
            if isinstance(axis, Axis) and not axis.fixed:
                found = self.maps(there.path, here.path, axis.side)
                value = moved(value, number, found, reads=axis.reads)
        return value if base is None else base[1] + value

    def _whole(
        self, value: np.ndarray, name: str, there: Meaning, here: Meaning
    ) -> np.ndarray:
        if there.path and not self.maps(there.path, here.path, "out").is_identity:
            raise NoMeaning(
                f"{name}: a sum of Kronecker products stays one only where no "
                "dimension moves; port it between hosts of one width by copy, skip or "
                "average"
            )
        return value

    def _factors(
        self, value: np.ndarray, name: str, there: Meaning, here: Meaning
    ) -> np.ndarray:
        (axis,) = there.axes
        assert isinstance(axis, Axis)
        if self.as_is and not (
            name.endswith("/magnitude") and self.magnitude == "relative"
        ):
            return value
        found = self.maps(there.path, here.path, axis.side)
        if name.endswith("/magnitude"):
            if self.magnitude == "absolute":
                return factors_moved(value, found, 0.0, name)
            norms = [
                _column_norms(host, meaning.path)
                for host, meaning in ((self.source, here), (self.target, there))
            ]
            # First the quotient of the norms: it is 1 where nothing changes.
            old = factors_moved(norms[0], found, 1.0, name)
            kept = factors_moved(value.astype(np.float64), found, 1.0, name)
            new = np.where(found.index < 0, 1.0, old)  # type: ignore[operator]
            return kept * (norms[1] / new)
        if there.own:
            old, new = (
                np.asarray(leaves[f"{meaning.path}/scale"], np.float64)
                for leaves, meaning in zip(self._own, (here, there), strict=True)
            )
            return new + factors_moved(value - old, found, 0.0, name)
        return factors_moved(value, found, 1.0, name)


def _column_norms(host: Host, path: str) -> np.ndarray:
    kernel = kernel_of(host, path)
    if kernel is None:
        raise NoMeaning(f"{path}: {host.name} has no kernel whose norms are known")
    # Of every output unit: the kernel is [in, out].
    return np.sqrt(np.sum(np.square(kernel), axis=0))
