"""Scores of methods in the owners' domains, and in those that no owner knows."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from fusion_jax import trees
from fusion_jax.evaluation.scoring import Scores
from fusion_jax.search.ensemble import label_ensemble
from fusion_jax.systems.dataless_given import Variant
from fusion_jax.systems.dataless_groups import Group
from fusion_jax.systems.dataless_members import Member, owners_of
from fusion_jax.systems.dataless_outcome import TaskScores, mean_score, method_entry
from fusion_jax.systems.dataless_setting import Setting
from fusion_jax.types import Model, Params

Models = Callable[[Member | None], Sequence[Params]]
"""Owner of a task, None for an unseen one -> the models whose mean score counts."""

ScoresOn = Callable[[str, str], Sequence[Scores]]
"""`(task, split) -> scores` of a method's models."""


class Chosen(NamedTuple):
    """The variant of a method that is best on the owners' dev rows.

    Attributes:
      variant: the first of the best.
      dev: task -> its scores.
      tried: options and dev score of every variant.
    """

    variant: Variant
    dev: TaskScores
    tried: list[dict[str, Any]]


def choose(
    setting: Setting, members: Sequence[Member], variants: Iterable[Variant]
) -> Chosen:
    """Scores every variant on the members' dev rows; at least one is given."""
    best: tuple[Variant, TaskScores] | None = None
    tried: list[dict[str, Any]] = []
    for variant in variants:
        dev = {
            member.name: [
                setting.judges[member.name].scores(variant.params_for(member), "dev")
            ]
            for member in members
        }
        if best is None or mean_score(dev) > mean_score(best[1]):
            best = variant, dev
        tried.append({**variant.chosen, "dev": mean_score(dev)})
    assert best is not None
    return Chosen(*best, tried)


def score_chosen(setting: Setting, group: Group, chosen: Chosen) -> dict[str, Any]:
    """The record of the variant that was chosen."""
    first = setting.members[group.members[0]]

    def models(member: Member | None) -> list[Params]:
        # An unseen domain is scored with the merged head, which is one for all.
        return [chosen.variant.params_for(member or first)]

    return _entry(setting, group, _scores_of(setting, group, models), chosen.dev)


def score_models(setting: Setting, group: Group, models: Models) -> dict[str, Any]:
    """The record of a method whose models are there."""
    return _entry(setting, group, _scores_of(setting, group, models))


def score_individual(setting: Setting, group: Group) -> dict[str, Any]:
    """The owners' own models: each at home, and the mean of all in unseen domains."""

    def scores_on(name: str, split: str) -> list[Scores]:
        owners = (name,) if name in group.members else group.members
        return [setting.own_scores(owner, name, split) for owner in owners]

    return _entry(setting, group, scores_on)


def score_ensemble(setting: Setting, group: Group) -> dict[str, Any]:
    """The mean of the owners' logits, each label by those who have it."""
    members = [setting.members[name] for name in group.members]
    stack = trees.stack([member.params for member in members])
    given = stack, jnp.asarray(owners_of(members))
    outputs = _outputs(members[0].problem.model)
    return _entry(
        setting,
        group,
        lambda name, split: [setting.judges[name].scores_of(outputs, given, split)],
    )


def score_owners(setting: Setting, group: Group) -> dict[str, dict[str, float | None]]:
    """Owner -> split -> the score of its own model at home."""
    return {
        name: {
            split: setting.own_scores(name, name, split).mean
            if setting.judges[name].has(split)
            else None
            for split in ("dev", "test")
        }
        for name in group.members
    }


def _scores_of(setting: Setting, group: Group, models: Models) -> ScoresOn:
    def scores_on(name: str, split: str) -> list[Scores]:
        member = setting.members[name] if name in group.members else None
        judge = setting.judges[name]
        return [judge.scores(params, split) for params in models(member)]

    return scores_on


def _entry(
    setting: Setting,
    group: Group,
    scores_on: ScoresOn,
    dev: TaskScores | None = None,
) -> dict[str, Any]:
    """The record of a method; its dev scores where they are known."""

    def scores(split: str, names: Sequence[str]) -> Mapping[str, Sequence[Scores]]:
        return {
            name: scores_on(name, split)
            for name in names
            if setting.judges[name].has(split)
        }

    return method_entry(
        scores("dev", group.members) if dev is None else dev,
        scores("test", group.members),
        scores("test", group.unseen),
    )


# One function a model: what is compiled for it is found again.
@functools.lru_cache(maxsize=16)
def _outputs(model: Model) -> Callable[..., Any]:
    return functools.partial(label_ensemble, model)
