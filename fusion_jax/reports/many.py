"""The sections of the report of several targets or seeds."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import quote

from fusion_jax.reports import domains, elements, plots, rounds, single
from fusion_jax.reports.elements import Row
from fusion_jax.reports.methods import NOT_ONE_MODEL, describe
from fusion_jax.reports.summary import many_headline
from fusion_jax.reports.tables import (
    ABSENT,
    difference,
    number,
    ordered_summary,
    spread_number,
)

Results = Mapping[str, Any]

# A link to a folded part shows its heading alone; this unfolds what is pointed to.
OPEN_TARGET = """<script>
function unfold() {
  const part = document.getElementById(location.hash.slice(1));
  if (part && part.tagName === "DETAILS") part.open = true;
}
addEventListener("hashchange", unfold);
unfold();
</script>"""


def header(summary: Mapping[str, Any]) -> str:
    """The answer, and what was run."""
    facts = [
        describe(summary["method"]).label,
        f"{len(summary['targets'])} targets",
        f"{len(summary['seeds'])} seeds"
        if len(summary["seeds"]) > 1
        else f"seed {summary['seeds'][0]}",
    ]
    return (
        f'<p class="eyebrow">{escape(" · ".join(facts))}</p>\n'
        f"<h1>{escape(many_headline(summary))}</h1>"
    )


def methods(summary: Mapping[str, Any]) -> str:
    """Methods by targets, the best of each column marked."""
    targets = summary["targets"]
    split = summary["split"]

    def best(values: Sequence[float | None]) -> float | None:
        known = [round(v, 3) for v in values if v is not None]
        return max(known) if len(known) > 1 else None

    rows_of = summary["methods"]
    models = [row for name, row in rows_of.items() if name not in NOT_ONE_MODEL]
    tops = {t: best([row["targets"][t]["score"] for row in models]) for t in targets}
    top = best([row["mean"] for row in models])
    rows = []
    for name in ordered_summary(summary):
        row = rows_of[name]
        one = name not in NOT_ONE_MODEL
        cells = [elements.score_cell(row["mean"], best=one and _is(row["mean"], top))]
        for target in targets:
            cell = row["targets"][target]
            drawn = elements.score_cell(
                cell["score"], best=one and _is(cell["score"], tops[target])
            )
            if cell["spread"] is not None:
                drawn = drawn._replace(html=spread_number(cell))
            cells.append(drawn)
        kind = "own" if name == summary["method"] else ""
        rows.append(Row(escape(describe(name).label), cells, kind))
    columns = [f'<a href="#{_anchor(t)}">{_breakable(t)}</a>' for t in targets]
    spread = (
        f" ± is the standard deviation over {len(summary['seeds'])} seeds."
        if len(summary["seeds"]) > 1
        else ""
    )
    return elements.section(
        "Methods by target",
        elements.table(["method", "mean", *columns], rows, kind="targets"),
        note=f"Scores on {split} in [0, 1], higher is better; the best single model "
        "of a column is coloured. A mean is given only for methods run on every target."
        f"{spread} {ABSENT} means not run.",
    )


def gains(summary: Mapping[str, Any]) -> str:
    """The method against the baselines, target by target."""
    own, parts = summary["method"], []
    label = describe(own).label
    for reference in (
        "pretrain_finetune_best",
        "mean_expert",
        "average",
        "base",
        "multitask",
    ):
        if own not in summary["methods"] or reference not in summary["methods"]:
            continue
        ours = summary["methods"][own]["targets"]
        theirs = summary["methods"][reference]["targets"]
        rows = [
            (t, difference(ours[t]["score"], theirs[t]["score"]))
            for t in summary["targets"]
        ]
        if all(gain is None for _, gain in rows):
            continue
        other = describe(reference).label
        said = ", ".join(f"{t} {number(g, sign=True)}" for t, g in rows)
        parts.append(
            elements.figure(
                plots.gains(rows, f"gains-{reference}"),
                f"{label} minus {other}: {said}.",
                f"{label} minus {other}.",
            )
        )
    return elements.section(
        f"{label} against its baselines",
        f'<div class="pair">{"".join(parts)}</div>' if parts else "",
    )


def targets(runs: Sequence[Results]) -> str:
    """One folded part for each run, with its table, weights and own report."""
    parts = []
    for run in runs:
        target, seed = str(run["target"]), run.get("seed", 0)
        link = run.get("report") or f"{target}/seed_{seed}/report.html"
        first = next(r for r in runs if r["target"] == run["target"]) is run
        anchor = f' id="{_anchor(target)}"' if first else ""
        parts.append(
            f"<details{anchor}><summary>{escape(target)}"
            f'<span class="note">seed {seed} · {escape(single.headline(run))}</span>'
            f'</summary>\n<p><a href="{escape(quote(str(link)))}">The report of this '
            "run</a>, with its search and its plots.</p>\n"
            f"{single.methods(run, level=3)}\n{single.sources(run, level=3)}</details>"
        )
    return elements.section("Target by target", *parts, OPEN_TARGET)


def cost(runs: Sequence[Results]) -> str:
    """Seconds by stage, summed over the runs."""
    seconds: dict[str, float] = {}
    for run in runs:
        for stage, value in (run.get("seconds") or {}).items():
            seconds[stage] = seconds.get(stage, 0.0) + (value or 0.0)
    return single.cost({"seconds": seconds})


def sections(
    results: Results, runs: Sequence[Results], summary: Mapping[str, Any]
) -> Sequence[str]:
    """All sections in reading order."""
    return (
        methods(summary),
        rounds.many_groups(results),
        domains.unseen_summary(results.get("summary_out_of_domain")),
        domains.ranking(results),
        gains(summary),
        targets(runs),
        cost(runs),
        single.details(runs[0]),
    )


def _is(value: float | None, top: float | None) -> bool:
    return value is not None and top is not None and round(value, 3) == top


def _breakable(name: str) -> str:
    """Escaped, with a chance to break the line after each underscore."""
    return escape(name).replace("_", "_<wbr>")


def _anchor(target: str) -> str:
    return "target-" + quote(target, safe="").replace("%", "-")
