"""What a person would say of the numbers of an inspection: few lines, each with one."""

from collections.abc import Iterator

import numpy as np

from fusion_jax.checkpoints.inspection.result import Inspection

# Two unrelated models of one size are sqrt(2) = 1.41 apart in relative norm; full
# fine-tunes are usually below 0.1.
FAR = 0.5
UNEQUAL = 4.0
PARALLEL = 0.9995  # where slerp turns to lerp
ALIKE = 0.95
OPPOSED = -0.1
MOSTLY_ZERO = 0.5
SHORT = {"bfloat16", "float16"}


def advice(inspection: Inspection) -> list[str]:
    """Lines for the person who is about to merge; none where nothing stands out."""
    return [
        *_identical(inspection),
        *_distance(inspection),
        *_lengths(inspection),
        *_directions(inspection),
        *_frozen(inspection),
    ]


def _names(inspection: Inspection, pair: tuple[int, int]) -> tuple[str, str]:
    names = list(inspection.models)
    return names[pair[0]], names[pair[1]]


def _identical(inspection: Inspection) -> Iterator[str]:
    for pair, same in zip(inspection.pairs, inspection.equal, strict=True):
        if same:
            one, other = _names(inspection, pair)
            yield f"{one} and {other} are identical in all that was compared"
    if inspection.base is not None:
        for name, norm in zip(inspection.models, inspection.norms[-1], strict=True):
            if norm == 0:
                yield f"{name} is identical to the base: its task vector is zero"


def _distance(inspection: Inspection) -> Iterator[str]:
    if inspection.base is not None:
        for name, far in zip(inspection.models, inspection.relative[-1], strict=True):
            if far >= FAR:
                yield (
                    f"{name} does not seem to come from this base: the relative norm "
                    f"of its delta is {far:.2f} (fine-tunes: mostly below 0.1, "
                    "unrelated models: 1.4)"
                )
        return
    for pair, cosine in zip(
        inspection.pairs, inspection.weight_cosines[-1], strict=True
    ):
        if cosine <= 1 - FAR:
            one, other = _names(inspection, pair)
            yield (
                f"{one} and {other} do not seem to share a base: the cosine of their "
                f"weights is {cosine:.2f}"
            )


def _lengths(inspection: Inspection) -> Iterator[str]:
    norms = inspection.norms[-1]
    moved = np.flatnonzero(norms > 0)
    if inspection.base is None or len(moved) < 2:
        return
    names = list(inspection.models)
    longest = int(moved[norms[moved].argmax()])
    shortest = int(moved[norms[moved].argmin()])
    ratio = norms[longest] / norms[shortest]
    if ratio >= UNEQUAL:
        yield (
            f"the task vector of {names[longest]} is {ratio:.3g} times as long as that "
            f"of {names[shortest]}: equal weights merge mostly {names[longest]}"
        )


def _directions(inspection: Inspection) -> Iterator[str]:
    different = [
        (pair, weight, cosine)
        for pair, weight, cosine, same in zip(
            inspection.pairs,
            inspection.weight_cosines[-1],
            inspection.cosines[-1],
            inspection.equal,
            strict=True,
        )
        if not same
    ]
    near = [weight for _, weight, _ in different if weight >= PARALLEL]
    if near:
        yield (
            f"the weights of {len(near)} of {len(inspection.pairs)} pairs have a "
            f"cosine near 1 (lowest {min(near):.6f}): slerp will do what linear does"
        )
    if inspection.base is None:
        if not different:
            return
        count = len(inspection.models)
        yield (
            f"without --base deltas are to the mean of {count} models and sum to zero: "
            f"cosines of {-1 / (count - 1):.2f} are what any {count} models of "
            "different directions have"
        )
        return
    for pair, _, cosine in different:
        one, other = _names(inspection, pair)
        if cosine >= ALIKE:
            yield (
                f"the task vectors of {one} and {other} point the same way (cosine "
                f"{cosine:.3f}): they count as one model with twice the weight"
            )
        elif cosine <= OPPOSED:
            yield (
                f"the task vectors of {one} and {other} pull apart (cosine "
                f"{cosine:.2f}): adding them takes from both"
            )


def _frozen(inspection: Inspection) -> Iterator[str]:
    if inspection.base is None:
        return
    still = (inspection.norms[:-1] == 0).all(axis=1)
    groups = [g for g, same in zip(inspection.groups, still, strict=False) if same]
    if groups and not still.all():
        shown = ", ".join(groups[:6]) + (" ..." if len(groups) > 6 else "")
        yield (
            f"{len(groups)} of {len(still)} groups are equal to the base in every "
            f"model: {shown}"
        )
    moving = np.flatnonzero(~still)
    if not SHORT & set(inspection.dtypes) or not len(moving):
        return
    sizes = inspection.elements[moving]
    for k, name in enumerate(inspection.models):
        zeros = float(inspection.zeros[moving, k] @ sizes / sizes.sum())
        if MOSTLY_ZERO <= zeros < 1:
            yield (
                f"{100 * zeros:.0f} % of the delta of {name} is exactly zero in the "
                "groups that moved: 16-bit files round small changes away"
            )
