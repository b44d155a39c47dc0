"""Tables and sentences of a task selection, for the page and the terminal."""

from collections.abc import Mapping
from typing import Any

from fusion_jax.reports.tables import ABSENT, Table, number, to_text

Results = Mapping[str, Any]

LABELS = {
    "kl": "KL(source, target)",
    "kl_reversed": "KL(target, source)",
    "jensen_shannon": "Jensen-Shannon",
    "renyi": "Renyi",
    "bhattacharyya": "Bhattacharyya",
    "term_euclidean": "L2 of terms",
    "term_cosine": "cosine of terms",
    "tfidf_cosine": "cosine of tf-idf",
    "mean_cosine": "cosine of mean states",
    "mean_euclidean": "L2 of mean states",
    "coral": "CORAL",
    "bures": "Gaussian W2 (Bures)",
    "gaussian_bhattacharyya": "Gaussian Bhattacharyya",
    "fisher_discriminant": "Fisher discriminant",
    "mmd": "MMD",
    "energy": "energy distance",
    "sliced_wasserstein": "sliced Wasserstein",
    "sinkhorn": "Sinkhorn divergence",
    "proxy_a": "proxy A-distance",
    "proxy_a_margin": "proxy A-distance, margin",
    "random": "random order",
    "own_score": "source's own score",
    "mean_elsewhere": "mean score on other targets",
    "confidence": "source model's confidence",
    "learned": "learned from other targets",
    "fusion": "rank fusion of all measures",
}


def label(name: str) -> str:
    """An order for people."""
    return LABELS.get(name, name.replace("_", " "))


def ordered(results: Results) -> list[str]:
    """Orders, the best mean correlation first."""
    judged = results["measures"]

    def place(name: str) -> tuple[bool, float, str]:
        mean = judged[name]["spearman"]["mean"]
        return (mean is None, -(mean or 0.0), name)

    return sorted(judged, key=place)


def measures_table(results: Results) -> Table:
    """Every order against measured transfer."""
    rows = []
    for name in ordered(results):
        record = results["measures"][name]
        rho = record["spearman"]
        least = record["without_loss"]
        gone = results["ledger"]["at_no_loss"].get(name)
        rows.append(
            (
                label(name),
                number(rho["mean"]),
                number(rho["sd"]),
                number(rho["min"]),
                percent(record["regret"]["1"]),
                percent(record["regret"]["3"]),
                number(record["ndcg"]),
                number(record["first"]),
                f"{least['keep']:g}" if least else ABSENT,
                percent(gone["per_pair"]["saved"]) if gone else ABSENT,
                percent(gone["per_source"]["saved"]) if gone else ABSENT,
            )
        )
    return Table(
        (
            "order",
            "rho",
            "s.d.",
            "min",
            "regret@1",
            "regret@3",
            "NDCG",
            "first",
            "keep",
            "pairs",
            "sources",
        ),
        tuple(rows),
        "Spearman's rho over the sources of a target: mean, standard deviation and "
        "least over targets. Regret in % of the best source's score; NDCG of scores "
        "above the target's least; first: mean score of the first source. keep: the "
        "smallest fraction of sources that holds the best one of 95 % of targets; "
        "pairs, sources: the share of the seconds that this saves where every pair, or "
        "every source, is tuned.",
    )


def told(results: Results) -> str:
    """A run for the terminal."""
    lines = [pairs_line(results) + ".", saving_line(results)]
    if results["measures"]:
        lines = [to_text(measures_table(results)), *lines]
    left_out = [f"left out: {name}: {why}" for name, why in results["left_out"].items()]
    return "\n".join([*lines, *left_out])


def percent(value: float | None) -> str:
    """'12.3 %', with a true minus."""
    return ABSENT if value is None else f"{number(100 * value, 1)} %"


def pairs_line(results: Results) -> str:
    """What was kept, in a sentence."""
    pairs = results["pairs"]
    held = sum(pair["kept"] for pair in pairs)
    return (
        f"{_first_up(label(results['order']))} keeps {held:,} of {len(pairs):,} "
        f"pairs of {len(results['names'])} tasks"
    )


def saving_line(results: Results) -> str:
    """What that saves and loses, in a sentence."""
    found = results["ledger"]["at_keep"]
    text = (
        f"That saves {percent(found['per_pair']['saved'])} of the seconds where every "
        f"pair is tuned, {percent(found['per_source']['saved'])} where every source is"
    )
    judged = results["measures"]
    if not judged:
        return f"{text}; what it loses is not known, as dropped pairs were not tried."
    curve = judged[results["order"]]["pruning"]
    point = min(curve, key=lambda point: abs(point["keep"] - results["keep"]))
    return (
        f"{text}. At {point['keep']:g} of the sources, {percent(point['survival'])} of "
        f"targets keep their best source, and the mean regret is "
        f"{percent(point['regret'])}."
    )


def _first_up(text: str) -> str:
    return text[:1].upper() + text[1:]
