"""The methods of a run: how they are called and what they are, in one line each."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Method(NamedTuple):
    """How a method is shown.

    Attributes:
      label: its name for people.
      what: one line on what it is.
    """

    label: str
    what: str


METHODS: dict[str, Method] = {
    "dfwe": Method("DFWE", "experts interpolated with weights found by search"),
    "mean_expert": Method("mean expert", "the average score of all experts"),
    "best_expert": Method("best expert", "the expert that is best on dev"),
    "uniform_soup": Method("uniform soup", "all experts with equal weights"),
    "greedy_soup": Method(
        "greedy soup", "experts added one by one where dev gets better"
    ),
    "loss_softmax": Method("loss softmax", "weights by each expert's loss on dev"),
    "random_search": Method("random search", "as many random weights as DFWE tried"),
    "gradient_weights": Method("gradient weights", "weights learned by gradients"),
    "logit_ensemble": Method(
        "logit ensemble", "upper reference: runs every expert on every input"
    ),
    "direct_finetune": Method("direct fine-tune", "trained on the target alone"),
    "pretrain_finetune_best": Method(
        "pretrain, fine-tune (best)", "one source, then the target: best source on dev"
    ),
    "pretrain_finetune_mean": Method(
        "pretrain, fine-tune (mean)", "one source, then the target: mean over sources"
    ),
    "multitask_finetune": Method(
        "multi-task, fine-tune", "all sources together, then the target"
    ),
}
"""The methods of a DFWE run, in the order of its record."""

OTHERS: dict[str, Method] = {
    "finetune": Method("fine-tune", "trained on the target alone"),
    "individual": Method(
        "individual models", "each in its own domain; their mean in unseen ones"
    ),
    "average": Method("average", "the mean of all weights"),
    "fisher": Method("Fisher", "each weight counts by its Fisher information"),
    "regmean": Method("RegMean", "linear layers regressed on the owners' inputs"),
    "regmean_plus_plus": Method(
        "RegMean++", "the same on inputs from merged layers below"
    ),
    "mats": Method("MaTS", "linear layers matched by inputs and output gradients"),
    "task_arithmetic": Method("task arithmetic", "task vectors added, scale by dev"),
    "ties": Method("TIES", "trimmed task vectors whose signs agree, scale by dev"),
    "wudi": Method("WUDI", "least interference of task vectors, no statistics"),
    "multitask": Method(
        "multi-task training", "upper reference: one model trained on all data"
    ),
    "cold": Method("ColD Fusion", "the last base, fine-tuned on each task"),
    "cold_frozen": Method("ColD Fusion, frozen", "a head on the last base"),
    "base": Method("plain base", "the pretrained model, fine-tuned on each task"),
    "base_frozen": Method("plain base, frozen", "a head on the pretrained model"),
    "one_shot": Method("one-shot fuse", "all seen tasks contribute once"),
    "one_shot_frozen": Method("one-shot fuse, frozen", "a head on that"),
    "multitask_frozen": Method("multi-task, frozen", "a head on that"),
}
"""Methods of the other systems."""

# Averages of scores are no model, and the ensemble is many.
NOT_ONE_MODEL = (
    "mean_expert",
    "pretrain_finetune_mean",
    "logit_ensemble",
    "individual",
)
# What a run is about, where it is not called like its system.
MAIN = {"dataless_fusion": "regmean", "cold_fusion": "cold"}
# What a run's methods are held against: the first of these that it has.
REFERENCES = ("mean_expert", "average", "base")


def describe(name: str) -> Method:
    """How a method is shown; one without an entry shows its own name."""
    return {**METHODS, **OTHERS}.get(name, Method(name.replace("_", " "), ""))


def main_method(results: Mapping[str, Any]) -> str:
    """The method the run is about: named like its system or in `MAIN`, else 'dfwe'."""
    system = str(results.get("system", "dfwe")).lower()
    method = MAIN.get(system, system)
    return method if method in results.get("methods", {}) else "dfwe"


def reference_method(results: Mapping[str, Any]) -> str:
    """The method that the others are held against, of `REFERENCES`."""
    names = results.get("methods", {})
    return next((name for name in REFERENCES if name in names), REFERENCES[0])


def reported_split(results: Mapping[str, Any]) -> str:
    """'test', or 'dev' where no method has a test score."""
    scores = [m or {} for m in results.get("methods", {}).values()]
    return "test" if any(s.get("test") is not None for s in scores) else "dev"


def score_of(results: Mapping[str, Any], method: str, split: str) -> float | None:
    """A method's score, or None where it was not run."""
    return (results.get("methods", {}).get(method) or {}).get(split)


def interval_of(results: Mapping[str, Any], method: str) -> tuple[float, float] | None:
    """A method's test interval, or None where there is none."""
    found = (results.get("methods", {}).get(method) or {}).get("test_interval")
    return None if found is None or None in found else (found[0], found[1])


def experts_of(results: Mapping[str, Any]) -> list[str]:
    """Names of the interpolated points, in the order of the coefficients."""
    weights = coefficients_of(results)
    return list(next(iter(weights.values()), {}))


def coefficients_of(results: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Weights by parameter group; the group of a run without groups is ''."""
    weights = results.get("coefficients") or {}
    if weights and all(isinstance(w, Mapping) for w in weights.values()):
        return {group: dict(row) for group, row in weights.items()}
    return {"": dict(weights)} if weights else {}
