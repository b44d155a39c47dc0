"""RegMean of files: one linear layer at a time, one expert of it in memory."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fusion_jax.checkpoints.lazy import LazyCheckpoint
from fusion_jax.checkpoints.output import Slot
from fusion_jax.checkpoints.plan import MergePlan, TensorPlan
from fusion_jax.checkpoints.statistics_file import LazyStatistics
from fusion_jax.checkpoints.tensors import CheckpointError
from fusion_jax.merging.regression import Solved, regress_layer

REGMEAN = "regmean"

Pieces = Iterator[tuple[int, np.ndarray]]


class Regressed:
    """The kernels of a plan that are regressed, and the biases solved with them.

    The state of a layer is two matrices [in, in] and some [in, out] in float64, for any
    number of models: kernels are read twice (their mean, then each one's difference),
    Grams once.
    """

    def __init__(
        self,
        plan: MergePlan,
        models: Mapping[str, LazyCheckpoint],
        statistics: Mapping[str, LazyStatistics],
        slots: Sequence[Slot],
        report: Callable[[str, Mapping[str, Any]], None],
    ) -> None:
        """Reads nothing yet.

        Args:
          plan: whose tensors of method 'regmean' have a Gram in every file.
          models: by label.
          statistics: by label of the experts.
          slots: of the output.
          report: called with a tensor and how it came about.
        """
        self._models, self._statistics, self._report = models, statistics, report
        self._dtypes = {slot.name: slot.dtype for slot in slots}
        self._plans = {t.name: t for t in plan.tensors if t.method == REGMEAN}
        first = next(iter(statistics.values()), None)
        self._layers = {} if first is None else first.manifest.layers

    def pieces(
        self, tensor: TensorPlan, done: set[str]
    ) -> Iterator[tuple[str, Pieces]]:
        """A kernel, and its bias where that is of the same solve.

        Args:
          tensor: of the plan; one that is a bias comes with its kernel, and gives
            nothing here.
          done: tensors that are written already.

        Yields:
          (tensor, its one piece).
        """
        layer = self._layers.get(tensor.name)
        if layer is None:
            return
        bias = self._plans.get(layer.bias or "")
        names = [tensor.name] if bias is None else [tensor.name, bias.name]
        if done.issuperset(names):
            return
        turned = layer.input_axis == -1
        kernel, offset, solved = self._solved(tensor, bias, turned)
        entry = {
            "how": "regressed",
            "solver": solved.how,
            "condition": float(f"{solved.condition:.3g}"),
            "dead_inputs": solved.dead,
            "loss": solved.loss,
            "tokens": {
                s.model: self._statistics[s.model].tokens(tensor.name)
                for s in tensor.sources
            },
        }
        values = {tensor.name: kernel.T if turned else kernel}
        if bias is not None and offset is not None:
            values[bias.name] = offset
        for name in names:
            if name not in done:
                self._report(name, entry)
                flat = np.ascontiguousarray(values[name]).reshape(-1)
                with np.errstate(over="ignore"):  # told by the check of the output
                    flat = flat.astype(self._dtypes[name])
                yield name, iter([(0, flat)])

    def _solved(
        self, tensor: TensorPlan, bias: TensorPlan | None, turned: bool
    ) -> tuple[np.ndarray, np.ndarray | None, Solved]:
        count = range(len(tensor.sources))
        try:
            return regress_layer(
                [self._reader(tensor, k, turned) for k in count],
                None if bias is None else [self._reader(bias, k, False) for k in count],
                (self._statistics[s.model].gram(tensor.name) for s in tensor.sources),
                tensor.coefficients,
                alpha=tensor.options["alpha"],
                ridge=tensor.options["ridge"],
                bias=bias is not None,
            )
        except ValueError as error:
            raise CheckpointError(f"{tensor.name}: {error}") from error

    def _reader(
        self, tensor: TensorPlan, k: int, turned: bool
    ) -> Callable[[], np.ndarray]:
        source = tensor.sources[k]

        def read() -> np.ndarray:
            array = self._models[source.model].read(source.tensor)
            return array.T if turned else array

        return read


def regression_memory(shape: tuple[int, ...], input_axis: int) -> int:
    """Bytes that the regression of one kernel takes at most: an estimate.

    The Gram in float32 beside the sums, then the sums beside their factorisation.
    """
    width, out = shape[input_axis] + 1, shape[-3 - input_axis]
    return 8 * (3 * width * width + 7 * width * out)
