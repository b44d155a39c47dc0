"""Sections of runs in rounds: ColD Fusion."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from fusion_jax.reports import elements, round_plots
from fusion_jax.reports.elements import Cell, Row
from fusion_jax.reports.methods import describe
from fusion_jax.reports.round_plots import Curve
from fusion_jax.reports.tables import ABSENT, difference, interval, number

Results = Mapping[str, Any]

# Way to evaluate -> (title, the baselines that are evaluated so).
WAYS = {
    "finetuned": ("Fine-tuned", ("base", "one_shot", "multitask")),
    "frozen": ("Frozen", ("base_frozen", "one_shot_frozen", "multitask_frozen")),
}
GROUPS = {
    "seen": "seen tasks",
    "unseen": "unseen tasks",
    "few_shot": "unseen tasks, few shots",
}
_SHORT = {"base": "plain", "one_shot": "one-shot", "multitask": "multi-task"}


def sections(results: Results) -> Sequence[str]:
    """What only a run in rounds has, in reading order; nothing for others."""
    if not results.get("rounds"):
        return ()
    return curves(results), groups(results), history(results), tasks(results)


def curves(results: Results) -> str:
    """Scores of the base by round: one plot for each group and way to evaluate."""
    parts = []
    for way, (title, baselines) in WAYS.items():
        for group in ("seen", "unseen"):
            points = _points(results, lambda s, w=way, g=group: s[w][g])
            levels = _levels(results, baselines, group)
            parts.append(
                _drawn(results, f"{title}, {GROUPS[group]}", points, levels, way, group)
            )
    points = _points(results, lambda scores: scores["few_shot"])
    levels = _levels(results, WAYS["finetuned"][1], "few_shot")
    parts.append(
        _drawn(results, "Few shots, unseen tasks", points, levels, "few_shot", "unseen")
    )
    return elements.section(
        "Scores by round",
        f'<div class="pair">{"".join(parts)}</div>' if any(parts) else "",
        note="Mean test score over tasks; round 0 is the pretrained model, dotted "
        "lines are what is not fused in rounds. Fine-tuned: everything is trained on "
        "each task, from the base. Frozen: a head alone.",
    )


def groups(results: Results) -> str:
    """Every method by group: means with and without tiny sets, gains over the base."""
    parts = []
    for group, title in GROUPS.items():
        rows = []
        for name, entry in results["methods"].items():
            found = (entry or {}).get(group)
            if found:
                rows.append(_group_row(name, found))
        if rows:
            columns = (
                *("method", "mean", "median", "without tiny"),
                *("gain", "95 %", "without tiny", "better / worse", "worst"),
            )
            parts.append(f"<h3>{escape(title[0].upper() + title[1:])}</h3>")
            parts.append(elements.table(columns, rows))
    tiny = [name for name, task in results["tasks"].items() if task["tiny"]]
    left = f"Tiny sets: {', '.join(tiny)}. " if tiny else "No set is called tiny. "
    return elements.section(
        "Seen and unseen tasks",
        *parts,
        note=f"{left}Gains are over the plain base evaluated the same way; their "
        "intervals are 95 % bootstrap over test items, paired. A frozen row is held "
        "against the frozen plain base.",
    )


def history(results: Results) -> str:
    """The bases: who contributed, what the screen left out, how they score."""
    rows = []
    for entry in results["rounds"]:
        scores = entry["scores"]
        made = ", ".join(entry["accepted"])
        for left in entry["rejected"]:
            made += f"; left out {left['contributor']}: {'; '.join(left['reasons'])}"
        accepted = f"{len(entry['accepted'])} of {len(entry['contributors'])}"
        rows.append(
            Row(
                f"{entry['round']}<small>{escape(entry['base'][:12])}</small>",
                [
                    Cell(escape(made) or ABSENT, "wrapped"),
                    Cell(accepted if entry["contributors"] else ABSENT),
                    *(
                        elements.score_cell(scores[way][group])
                        for way in WAYS
                        for group in ("seen", "unseen")
                    ),
                    elements.score_cell(scores["few_shot"]),
                ],
            )
        )
    columns = (
        *("base", "made from", "accepted", "seen", "unseen"),
        *("seen,<br>frozen", "unseen,<br>frozen", "few<br>shots"),
    )
    return elements.section(
        "Rounds",
        elements.table(columns, rows),
        note="A base by its round and the hash of its weights; every verdict of the "
        "screen stands in its manifest.",
    )


def tasks(results: Results) -> str:
    """Every task by method, with what it is."""
    names = [name for name, entry in results["methods"].items() if entry["test"]]
    rows = []
    for task, facts in results["tasks"].items():
        group = facts["group"]
        scores = {
            name: (results["methods"][name][group] or {"tasks": {}})["tasks"].get(task)
            for name in names
        }
        gain = difference(scores.get("cold"), scores.get("base"))
        told = [group, f"{facts['labels']} labels", f"{facts['rows']['train']} rows"]
        told += ["tiny"] if facts["tiny"] else []
        told += [f"contributed {facts['contributed']}x"] if group == "seen" else []
        rows.append(
            Row(
                f"{escape(task)}<small>{escape(', '.join(told))}</small>",
                [
                    elements.gain_cell(gain),
                    *(elements.score_cell(scores[name]) for name in names),
                ],
            )
        )
    labels = [escape(describe(name).label) for name in names]
    return elements.section(
        "Task by task",
        elements.table(["task", "gain", *labels], rows, kind="targets"),
        note="Test scores; the gain is that of ColD Fusion over the plain base, both "
        "fine-tuned.",
    )


def many_groups(results: Results) -> str:
    """Groups by method over folds and seeds; '' for runs without rounds."""
    found = results.get("groups") or {}
    rows = []
    for name, entry in found.items():
        if not any(cell["runs"] for cell in entry.values()):
            continue
        cells = []
        for group in GROUPS:
            cell = entry[group]
            text = number(cell["score"])
            if cell["spread"] is not None:
                text += f" ± {cell['spread']:.3f}"
            cells += [Cell(text), elements.gain_cell(cell["gain"])]
        kind = "own" if name == "cold" else ""
        rows.append(Row(escape(describe(name).label), cells, kind))
    if not rows:
        return ""
    columns = [x for title in GROUPS.values() for x in (title, "gain")]
    return elements.section(
        "Seen and unseen tasks",
        elements.table(["method", *columns], rows),
        note="Means over folds and seeds, ± their standard deviation; gains are over "
        "the plain base evaluated the same way.",
    )


def _group_row(name: str, found: Mapping[str, Any]) -> Row:
    gain, large = found["gain"], found["without_tiny"]
    cells = [
        elements.score_cell(found["score"]),
        elements.score_cell(found["median"]),
        elements.score_cell(large and large["score"]),
    ]
    if gain is None:
        cells += [elements.absent("this is the base")] * 5
    else:
        task, worst = gain["worst"]
        cells += [
            elements.gain_cell(gain["mean"]),
            Cell(interval(gain["interval"])),
            elements.gain_cell(gain["without_tiny"]),
            Cell(f"{gain['better']} / {gain['worse']}"),
            Cell(
                f"{number(worst, sign=True)} {escape(task).replace('_', '_<wbr>')}",
                "narrow",
            ),
        ]
    kind = "own" if name == "cold" else ""
    return Row(escape(describe(name).label), cells, kind)


def _points(results: Results, pick: Any) -> list[tuple[int, float]]:
    found = [(entry["round"], pick(entry["scores"])) for entry in results["rounds"]]
    return [(round_, score) for round_, score in found if score is not None]


def _levels(results: Results, names: Sequence[str], group: str) -> dict[str, float]:
    """Short label -> score of baselines in a group; the plain base is round 0."""
    found = {}
    for name in names:
        entry = ((results["methods"].get(name) or {}).get(group)) or {}
        if entry.get("score") is not None:
            found[_SHORT[name.removesuffix("_frozen")]] = entry["score"]
    return found


def _drawn(
    results: Results,
    title: str,
    points: Sequence[tuple[int, float]],
    levels: Mapping[str, float],
    way: str,
    group: str,
) -> str:
    if not points:
        return ""
    last = results["rounds"][-1]["round"]
    curve = Curve("ColD", points, dashed=way == "frozen")
    drawing = round_plots.by_round([curve], levels, last, f"rounds-{way}-{group}")
    said = ", ".join(f"round {r} {number(score)}" for r, score in points)
    said += "".join(f"; {name} {number(level)}" for name, level in levels.items())
    return elements.figure(drawing, f"{title}: {said}.", f"{title}.")
