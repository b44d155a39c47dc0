"""The tables of an inspection, as cells of text for the terminal and the page."""

from collections import Counter
from string import ascii_uppercase

import numpy as np

from fusion_jax.checkpoints.inspection.inspect import Inspection
from fusion_jax.reports.tables import ABSENT, Table, number

WIDE = 6
"""Pairs that a row by layer holds; of more it has the lowest and the highest."""


def letters(inspection: Inspection) -> list[str]:
    """A short heading for each model: A to Z, then M27 and on."""
    return [
        ascii_uppercase[k] if k < 26 else f"M{k + 1}"
        for k in range(len(inspection.models))
    ]


def pair_letters(inspection: Inspection) -> list[str]:
    """'A·B' for each pair."""
    marks = letters(inspection)
    return [f"{marks[i]}·{marks[j]}" for i, j in inspection.pairs]


def models_table(inspection: Inspection) -> Table:
    """A row a model, over all that was compared."""
    rows = [
        (
            f"{mark}  {name}",
            small(inspection.norms[-1, k]),
            small(inspection.relative[-1, k]),
            share(inspection.zeros[-1, k]),
            small(inspection.largest[-1, k]),
        )
        for k, (mark, name) in enumerate(
            zip(letters(inspection), inspection.models, strict=True)
        )
    ]
    columns = ("model", "delta norm", "relative", "zeros", "largest")
    return Table(columns, tuple(rows), f"deltas are to the {inspection.reference}")


def pairs_table(inspection: Inspection) -> Table:
    """A row a pair, over all that was compared."""
    rows = [
        (
            mark,
            cosine(inspection.cosines[-1, p]),
            cosine(inspection.weight_cosines[-1, p], 6),
            share(inspection.agreement[-1, p]),
        )
        for p, mark in enumerate(pair_letters(inspection))
    ]
    note = ""
    if len(inspection.models) > 2:
        all_agree = share(inspection.agreement_all[-1])
        count = len(inspection.models)
        chance = share(2.0 ** (1 - count))
        note = f"all {count} signs are equal in {all_agree}; by chance in {chance}"
    columns = ("pair", "cosine of deltas", "cosine of weights", "equal signs")
    return Table(columns, tuple(rows), note)


def groups_table(inspection: Inspection) -> Table:
    """A row a layer or tensor: relative norms, cosines of deltas, equal signs."""
    marks, pairs = letters(inspection), pair_letters(inspection)
    many = len(pairs) > WIDE
    heads = ("lowest cos", "highest cos") if many else tuple(f"cos {p}" for p in pairs)
    signs = ("equal signs",) if pairs else ()
    rows = []
    for g, group in enumerate(inspection.groups):
        found = inspection.cosines[g]
        if many:
            known = found[np.isfinite(found)]
            found = [known.min(), known.max()] if len(known) else [np.nan, np.nan]
        rows.append(
            (
                group,
                f"{inspection.elements[g]:,}",
                *(small(value) for value in inspection.relative[g]),
                *(cosine(value) for value in found),
                *([share(inspection.agreement_all[g])] if signs else []),
            )
        )
    columns = (inspection.by, "elements", *(f"|{m}|" for m in marks), *heads, *signs)
    note = "|A| is the norm of A's delta over the reference's norm"
    return Table(columns, tuple(rows), note)


def findings_table(inspection: Inspection) -> Table:
    """A row for each kind of fault and detail, with the tensors it is about."""
    counts = Counter((f.kind, f.detail) for f in inspection.findings)
    rows = []
    for (kind, detail), count in counts.items():
        names = [
            f.tensor
            for f in inspection.findings
            if (f.kind, f.detail) == (kind, detail)
        ]
        shown = ", ".join(names[:3]) + (f" and {count - 3} more" if count > 3 else "")
        rows.append((kind, f"{detail}: {shown}" if shown else detail))
    return Table(("finding", "what"), tuple(rows))


def small(value: float) -> str:
    """Three digits that count; a dash where undefined."""
    return f"{value:.3g}" if np.isfinite(value) else ABSENT


def cosine(value: float, digits: int = 3) -> str:
    """Fixed digits; a dash where undefined."""
    return number(float(value) if np.isfinite(value) else None, digits)


def share(value: float) -> str:
    """Per cent with one digit; a dash where undefined."""
    return f"{100 * value:.1f} %" if np.isfinite(value) else ABSENT
