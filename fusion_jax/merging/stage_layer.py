"""One linear layer of a stage: its running sums, its solution, and the report."""

import re
from typing import Any

import numpy as np

from fusion_jax.merging.host_means import weighted_mean
from fusion_jax.merging.layer_sums import LayerSums


class StageLayer:
    """One kernel of a stage, and its bias where both are solved."""

    def __init__(
        self,
        name: str,
        experts: list[dict[str, Any]],
        weights: np.ndarray,
        *,
        alpha: float,
        biases: bool,
    ) -> None:
        """Sums of nothing.

        Args:
          name: leaf of the kernel.
          experts: K times leaf -> array, of the stage.
          weights: [K], their sum 1.
          alpha: scale of the off-diagonal of Grams.
          biases: solve the bias 'x/bias' of a kernel 'x/kernel' with it.
        """
        bias = re.sub(r"(^|/)kernel$", r"\1bias", name)
        self.name = name
        self._names = [name]
        if biases and bias != name and bias in experts[0]:
            self._names.append(bias)
        self._experts = experts
        self._means = [
            weighted_mean([own[leaf] for own in experts], weights)
            for leaf in self._names
        ]
        shape = self._means[0].shape
        if len(shape) != 2:
            raise ValueError(
                f"{name}: a kernel of shape {shape} is no matrix [in, out]; leave it "
                "out with layers="
            )
        self._sums = LayerSums(*shape, bias=len(self._names) == 2, alpha=alpha)
        self._alpha, self._weights = alpha, weights
        self._tokens: list[int] = []

    def add(self, k: int, gram: np.ndarray | None, tokens: int) -> None:
        """Adds expert k.

        Args:
          k: which.
          gram: the mean of [x; 1] [x; 1]^T over its tokens; None where there are none.
          tokens: how many.

        Raises:
          ValueError: no tokens, or what `LayerSums` refuses.
        """
        if gram is None or not tokens:
            raise ValueError(
                f"{self.name}: no real token in the batches of expert {k}; give it data"
            )
        own = self._experts[k]
        differences = [
            np.asarray(own[leaf]).astype(np.float64) - mean
            for leaf, mean in zip(self._names, self._means, strict=True)
        ]
        try:
            self._sums.add(self._weights[k], gram, *differences)
        except ValueError as error:
            raise ValueError(f"{self.name}, expert {k}: {error}") from error
        self._tokens.append(tokens)

    def solve(self, ridge: float) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The merged leaves, and what the report says of them."""
        solved = self._sums.solve(alpha=self._alpha, ridge=ridge)
        found = [solved.kernel, solved.bias]
        leaves = {
            name: (mean + change).astype(self._experts[0][name].dtype)
            for name, mean, change in zip(self._names, self._means, found, strict=False)
        }
        return leaves, {
            "how": "regressed",
            "solver": solved.how,
            "condition": solved.condition,
            "loss": solved.loss,
            "dead": solved.dead,
            "tokens": self._tokens,
        }
