"""The seven FETA-Friends tasks: labels in class-id order, metrics, published sizes."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fusion_jax.data.task import Task

RELATIONS = (
    "per:positive_impression",
    "per:negative_impression",
    "per:acquaintance",
    "per:alumni",
    "per:boss",
    "per:subordinate",
    "per:client",
    "per:dates",
    "per:friends",
    "per:girl/boyfriend",
    "per:neighbor",
    "per:roommate",
    "per:children",
    "per:other_family",
    "per:parents",
    "per:siblings",
    "per:spouse",
    "per:place_of_residence",
    "per:place_of_birth",
    "per:visited_place",
    "per:origin",
    "per:employee_or_member_of",
    "per:schools_attended",
    "per:works",
    "per:age",
    "per:date_of_birth",
    "per:major",
    "per:place_of_work",
    "per:title",
    "per:alternate_names",
    "per:pet",
    "gpe:residents_of_place",
    "gpe:visitors_of_place",
    "gpe:births_in_place",
    "org:employees_or_members",
    "org:students",
    "unanswerable",
)
"""DialogRE's relations; the place is the class id."""

DROPPED_RELATIONS = frozenset(
    {"per:place_of_birth", "per:alternate_names", "gpe:births_in_place"}
)
"""Taken out of the rows; a pair with nothing else is taken out as well."""

CHARACTERS = {
    "Chandler Bing": "chandler",
    "Joey Tribbiani": "joey",
    "Monica Geller": "monica",
    "Phoebe Buffay": "phoebe",
    "Rachel Green": "rachel",
    "Ross Geller": "ross",
}
"""Full name -> class; every other entity is 'other'."""

TRAITS = ("AGR", "CON", "EXT", "OPN", "NEU")


class FetaTask(NamedTuple):
    """What is fixed about one task, apart from its rows.

    Attributes:
      name: folder and key of the task.
      reference: its name in the benchmark.
      kind: kind of `Task`.
      labels: class names in class-id order.
      metrics: names in `fusion_jax.evaluation.metrics.METRICS`.
      aims: published rows of the few-shot (train, dev) and of test; None = unknown.
      total: published rows of all splits together.
      unscored_labels: classes that no metric counts.
      decision: how logits become labels, where the default is not the benchmark's.
    """

    name: str
    reference: str
    kind: str
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    aims: tuple[int | None, int | None, int | None]
    total: int
    unscored_labels: tuple[str, ...] = ()
    decision: str = ""


FETA_TASKS: dict[str, FetaTask] = {
    task.name: task
    for task in (
        FetaTask(
            "friends_emory_emotion",
            "emory_emotion_recognition",
            "single_label",
            ("joyful", "mad", "neutral", "peaceful", "powerful", "sad", "scared"),
            ("f1_micro", "f1_weighted"),
            (863, 207, 1912),
            12606,
        ),
        FetaTask(
            "friends_meld",
            "MELD_emotion_recognition",
            "single_label",
            ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise"),
            ("f1_micro", "f1_weighted"),
            (616, None, 1247),
            9140,
        ),
        FetaTask(
            "friends_reading",
            "reading_comprehension",
            "choice",
            (),
            ("accuracy",),
            (950, 208, 2284),
            13865,
        ),
        FetaTask(
            "friends_charid",
            "character_identification",
            "single_label",
            (*CHARACTERS.values(), "other"),
            ("f1_micro", "f1_macro"),
            (3593, None, 7803),
            50247,
        ),
        FetaTask(
            "friends_qa",
            "question_answering",
            "span",
            (),
            ("exact_match", "token_f1", "token_f1_micro"),
            (835, 197, 1937),
            12257,
        ),
        FetaTask(
            "friends_personality",
            "personality_detection",
            "multi_label",
            TRAITS,
            ("label_accuracy",),
            (55, 15, 110),
            711,
        ),
        FetaTask(
            "friends_relation",
            "relation_extraction",
            "multi_label",
            RELATIONS,
            ("f1_micro",),
            (530, 130, 1131),
            7636,
            # The benchmark's range of scored ids stops at 34, so org:students and
            # unanswerable are not scored either; kept so for comparability.
            unscored_labels=(
                "per:place_of_birth",
                "per:alternate_names",
                "gpe:births_in_place",
                "org:students",
                "unanswerable",
            ),
            decision="softmax:0.1",
        ),
    )
}
"""Task name -> what is fixed about it. Relation aims count labels, not pairs."""


def resolve_targets(targets: Iterable[str] | None) -> tuple[str, ...]:
    """Task names of `targets`, given as folder names or as the benchmark's names.

    Raises:
      ValueError: lists the unknown names and the known ones.
    """
    if targets is None:
        return tuple(FETA_TASKS)
    by_reference = {task.reference: name for name, task in FETA_TASKS.items()}
    asked = [by_reference.get(target, target) for target in targets]
    unknown = [name for name in asked if name not in FETA_TASKS]
    if unknown:
        raise ValueError(
            f"unknown FETA-Friends task {', '.join(unknown)}; the tasks are "
            f"{', '.join(FETA_TASKS)} (or {', '.join(by_reference)})"
        )
    return tuple(asked)


def make_task(
    name: str, splits: Mapping[str, Sequence[dict[str, Any]]], origin: str = ""
) -> Task:
    """The `Task` of normalised rows; a split without rows is left out."""
    fixed = FETA_TASKS[name]
    return Task(
        name=name,
        kind=fixed.kind,
        labels=fixed.labels,
        metrics=fixed.metrics,
        splits={split: tuple(rows) for split, rows in splits.items() if rows},
        unscored_labels=fixed.unscored_labels,
        decision=fixed.decision,
        origin=origin,
    )


def rows_table(tasks: Mapping[str, Task], *, few_shot: bool = True) -> str:
    """Rows by task and split beside the published sizes, as aligned text."""
    lines: list[tuple[str, ...]] = [("task", "train", "dev", "test", "published")]
    for name, fixed in FETA_TASKS.items():
        counts = [
            str(len(tasks[name].splits.get(split, ()))) if name in tasks else "-"
            for split in ("train", "dev", "test")
        ]
        aims = ["?" if aim is None else f"{aim}" for aim in fixed.aims]
        if few_shot:
            published = " / ".join(aims)
        else:
            published = f"{fixed.total} in all, test {aims[2]}"
        if name == "friends_relation":
            published += " (labels; test: pairs)"
        lines.append((name, *counts, published))
    widths = [max(len(line[i]) for line in lines) for i in range(4)]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0])]
            + [line[i].rjust(widths[i]) for i in (1, 2, 3)]
            + [line[4]]
        )
        for line in lines
    )
