"""The ways of merging that are compared: each yields variants to choose from on dev."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax import trees
from fusion_jax.checkpoints.in_process import merge_arrays
from fusion_jax.config import Config
from fusion_jax.merging import fisher as merge_fisher
from fusion_jax.merging.label_heads import merge_label_columns
from fusion_jax.merging.layer_inputs import Grams
from fusion_jax.merging.mats import mats as merge_mats
from fusion_jax.merging.regmean_plus_plus import regress_stages
from fusion_jax.merging.regression import regress_layer_for
from fusion_jax.systems.dataless_members import Member, owners_of, statistics_model
from fusion_jax.types import Params

Leaves = dict[str, np.ndarray]

_ENCODER = "encoder/"
_BY_LABEL = r"classifier/.*"  # leaves of a head with a column for each label


class Variant(NamedTuple):
    """One merged model.

    Attributes:
      chosen: the options that tell it from the method's other variants.
      encoder: merged {'encoder': ...}.
      head: merged head; None where every task keeps its own.
      layers: leaf -> 'regressed' or 'averaged', of methods that do either.
    """

    chosen: dict[str, float]
    encoder: Params
    head: Params | None
    layers: Mapping[str, str] = {}

    def params_for(self, member: Member) -> Params:
        """The model for a member's task."""
        head = member.params["head"] if self.head is None else self.head
        return {"encoder": self.encoder["encoder"], "head": head}


@dataclass(frozen=True)
class Fusion:
    """What a method is given.

    Attributes:
      members: K owners with their models.
      base: theta_0, {'encoder': ...}.
      shared_labels: whether heads have one label space and are merged too.
      options: of the run.
    """

    members: Sequence[Member]
    base: Params = field(repr=False)
    shared_labels: bool
    options: Config

    @property
    def coefficients(self) -> np.ndarray:
        """[K], all equal: Grams and Fishers are means over their own rows."""
        return np.full(len(self.members), 1 / len(self.members))

    @functools.cached_property
    def encoders(self) -> dict[str, Leaves]:
        """Member -> encoder leaves, on the host."""
        return {
            member.name: _host({"encoder": member.params["encoder"]})
            for member in self.members
        }

    @functools.cached_property
    def base_leaves(self) -> Leaves:
        """Encoder leaves of theta_0 that the members have too."""
        first = next(iter(self.encoders.values()))
        leaves = _host({"encoder": self.base["encoder"]})
        return {name: leaves[name] for name in first}

    def merge_heads(self, merge: Callable[..., Params]) -> Params | None:
        """The heads by label: each column by those members whose rows have the label.

        Layers of a head that come before its classifier, and heads without labels,
        are merged over all members.

        Args:
          merge: `(heads [k, ...], coefficients [k], members [k]) -> head`.
        """
        if not self.shared_labels:
            return None
        heads = trees.stack(
            [jax.tree.map(np.asarray, m.params["head"]) for m in self.members]
        )
        by_label, others = trees.partition(heads, _BY_LABEL)
        everyone = tuple(range(len(self.members)))
        parts = []
        if others:
            parts.append(merge(others, self.coefficients, everyone))
        if by_label:
            owners = owners_of(self.members)
            parts.append(
                merge_label_columns(merge, by_label, self.coefficients, owners)
            )
        return trees.combine(*parts)

    @functools.cached_property
    def averaged(self) -> Leaves:
        """The mean of the encoders."""
        return merge_arrays(self.encoders, "weighted_average", list(self.coefficients))

    @functools.cached_property
    def average_head(self) -> Params | None:
        """The heads averaged by label."""
        return self.merge_heads(_mean)


def average(fusion: Fusion) -> Iterator[Variant]:
    """The mean of all leaves."""
    yield Variant({}, trees.unflatten(fusion.averaged), fusion.average_head)


def fisher(fusion: Fusion) -> Iterator[Variant]:
    """The mean weighted by diagonal Fisher information, entry by entry."""
    fishers = [trees.flatten(member.fisher) for member in fusion.members]
    if fusion.options.statistics.normalize:
        # By the norm over the whole model, encoder and head.
        fishers = [_of_norm_one(own) for own in fishers]

    def merged(stack: Params, row: Any, indices: Sequence[int], place: str) -> Params:
        own = [
            trees.unflatten({name: fishers[i][place + name] for name in _flat(stack)})
            for i in indices
        ]
        return _fisher(stack, jnp.asarray(row, jnp.float32), trees.stack(own))

    everyone = range(len(fusion.members))
    encoders = trees.stack(
        [{"encoder": member.params["encoder"]} for member in fusion.members]
    )
    yield Variant(
        {},
        merged(encoders, fusion.coefficients, everyone, ""),
        fusion.merge_heads(functools.partial(merged, place="head/")),
    )


def regmean(fusion: Fusion) -> Iterator[Variant]:
    """Kernels regressed on the members' inputs; a variant for each alpha."""
    options = fusion.options
    averaged = fusion.averaged
    grams = [member.grams for member in fusion.members]
    names = [name for name in averaged if all(name in g.readers for g in grams)]
    encoders = list(fusion.encoders.values())
    found: dict[float, Leaves] = {alpha: dict(averaged) for alpha in options.alphas}
    for name in names:
        kernels = [leaves[name] for leaves in encoders]
        for alpha, kernel in _regressed(
            kernels, [_gram(g, name) for g in grams], fusion.coefficients, options
        ).items():
            found[alpha][name] = kernel
    layers = {name: "regressed" if name in names else "averaged" for name in averaged}
    for alpha, leaves in found.items():
        yield Variant(
            {"alpha": alpha},
            trees.unflatten(leaves),
            _regmean_head(fusion, alpha),
            layers,
        )


def regmean_plus_plus(fusion: Fusion) -> Iterator[Variant]:
    """RegMean layer by layer, on inputs from the layers merged already."""
    options, first = fusion.options, fusion.members[0]
    model = statistics_model(first.problem, first.architecture, options.dtype)
    # Heads stay outside: tasks may have different ones, and labels their own owners.
    blank = jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype),
        jax.eval_shape(model.init, jax.random.key(0))["head"],
    )
    experts = [
        {"encoder": trees.unflatten(leaves)["encoder"], "head": blank}
        for leaves in fusion.encoders.values()
    ]
    batches = [
        member.batches(options.statistics.cascade_examples) for member in fusion.members
    ]
    for alpha in options.cascade_alphas:
        merged, report = regress_stages(
            model.stages,
            experts,
            batches,
            fusion.coefficients,
            alpha=alpha,
            ridge=options.ridge,
            layers=r"encoder/.*",
        )
        layers = {
            name: entry["how"]
            for name, entry in report.items()
            if name.startswith(_ENCODER)
        }
        head = _regmean_head(fusion, alpha)
        yield Variant({"alpha": alpha}, {"encoder": merged["encoder"]}, head, layers)


def mats(fusion: Fusion) -> Iterator[Variant]:
    """Kernels matched by inputs and output gradients, from task arithmetic on."""
    options = fusion.options
    averaged = fusion.averaged
    curvature = [member.curvature for member in fusion.members]
    names = [name for name in averaged if all(name in c.outputs for c in curvature)]
    layers = {name: "regressed" if name in names else "averaged" for name in averaged}
    for alpha in options.mats_alphas:
        leaves = dict(averaged)
        for name in names:
            kernels = [own[name] for own in fusion.encoders.values()]
            leaves[name] = np.asarray(
                _mats(options.mats_iterations)(
                    np.stack(kernels),
                    fusion.base_leaves[name],
                    jnp.asarray(fusion.coefficients, jnp.float32),
                    np.stack([_gram(c, name)[:-1, :-1] for c in curvature]),
                    np.stack([np.asarray(c.outputs[name]) for c in curvature]),
                    options.mats_scale,
                    alpha,
                )
            )
        yield Variant(
            {"alpha": alpha}, trees.unflatten(leaves), fusion.average_head, layers
        )


def task_arithmetic(fusion: Fusion) -> Iterator[Variant]:
    """theta_0 + scale * sum_k (theta_k - theta_0)."""
    for scale in fusion.options.scales:
        leaves = merge_arrays(
            fusion.encoders,
            "task_arithmetic",
            [scale] * len(fusion.members),
            base=fusion.base_leaves,
        )
        yield Variant({"scale": scale}, trees.unflatten(leaves), fusion.average_head)


def ties(fusion: Fusion) -> Iterator[Variant]:
    """Trimmed task vectors whose signs agree, at a density of 0.2."""
    for scale in fusion.options.ties_scales:
        leaves = merge_arrays(
            fusion.encoders,
            "ties",
            [1.0] * len(fusion.members),
            base=fusion.base_leaves,
            options={"density": 0.2, "scale": scale},
        )
        yield Variant({"scale": scale}, trees.unflatten(leaves), fusion.average_head)


def wudi(fusion: Fusion) -> Iterator[Variant]:
    """Least interference of task vectors, which stand for their own inputs."""
    leaves = merge_arrays(
        fusion.encoders,
        "wudi",
        [1.0] * len(fusion.members),
        base=fusion.base_leaves,
        options={"input_axis": -2},
    )
    yield Variant({}, trees.unflatten(leaves), fusion.average_head)


MERGED: dict[str, Callable[[Fusion], Iterator[Variant]]] = {
    "average": average,
    "fisher": fisher,
    "regmean": regmean,
    "regmean_plus_plus": regmean_plus_plus,
    "mats": mats,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
    "wudi": wudi,
}
"""Name -> method; a new one is a function and a line here."""


def _regmean_head(fusion: Fusion, alpha: float) -> Params | None:
    def merge(stack: Params, row: Any, indices: Sequence[int]) -> Params:
        merged = _flat(_mean(stack, row, indices))
        own = [fusion.members[i].grams for i in indices]
        for name, kernels in _host(stack).items():
            leaf = f"head/{name}"
            if all(leaf in grams.readers for grams in own):
                grams = [_gram(g, leaf) for g in own]
                options = fusion.options
                solved = _regressed(list(kernels), grams, row, options, (alpha,))
                merged[name] = solved[alpha]
        return trees.unflatten(merged)

    return fusion.merge_heads(merge)


def _regressed(
    kernels: Sequence[np.ndarray],
    grams: Sequence[np.ndarray],
    coefficients: Any,
    options: Config,
    alphas: Sequence[float] | None = None,
) -> dict[float, np.ndarray]:
    """Alpha -> kernel: three sums serve every alpha."""
    found = regress_layer_for(
        options.alphas if alphas is None else alphas,
        kernels,
        None,
        grams,
        coefficients,
        ridge=options.ridge,
    )
    dtype = kernels[0].dtype
    return {alpha: layer.kernel.astype(dtype) for alpha, layer in found.items()}


def _gram(grams: Grams, kernel: str) -> np.ndarray:
    return np.asarray(grams.inputs[grams.readers[kernel]])


def _mean(stack: Params, row: Any, indices: Sequence[int]) -> Params:
    del indices
    weights = np.asarray(row, np.float64)
    weights = weights / weights.sum()
    return jax.tree.map(
        lambda x: np.einsum("k,k...->...", weights, np.asarray(x)).astype(x.dtype),
        stack,
    )


@jax.jit
def _fisher(stack: Params, row: jax.Array, statistics: Params) -> Params:
    return merge_fisher(stack, row, statistics=statistics)


def _of_norm_one(fishers: Leaves) -> Leaves:
    norm = np.sqrt(sum(np.vdot(x, x) for x in fishers.values())) or 1.0
    return {name: (x / norm).astype(np.float32) for name, x in fishers.items()}


@functools.lru_cache(maxsize=8)
def _mats(iterations: int) -> Callable[..., jax.Array]:
    """One kernel at a time under one name: layers of one shape share a program."""

    def run(kernels, base, row, inputs, outputs, scale, alpha):
        return merge_mats(
            {"kernel": kernels},
            row,
            statistics={"inputs": {"kernel": inputs}, "outputs": {"kernel": outputs}},
            base={"kernel": base},
            start="task_arithmetic",
            scale=scale,
            iterations=iterations,
            alpha=alpha,
        )["kernel"]

    return jax.jit(run)


def _host(tree: Params) -> Leaves:
    return {name: np.asarray(x) for name, x in trees.flatten(tree).items()}


def _flat(tree: Params) -> Leaves:
    return dict(trees.flatten(tree))
