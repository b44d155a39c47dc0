"""Sentiment tasks of three domains whose words differ, for task selection."""

import json

import numpy as np

from tests.small_models import LABELS, write_task

# Words of the tiny encoder's vocabulary. Domains of one letter share some of theirs,
# and what they mean by 'great' and 'dull'.
DOMAINS = {
    "a1": "ada sat home at".split(),
    "a2": "ada sat home in".split(),
    "b1": "bo saw film not".split(),
    "b2": "bo saw film who".split(),
}


def rows_of(words, count, seed):
    """Texts of common words and a domain's own; the adjective decides."""
    random = np.random.default_rng(seed)
    adjectives = {"positive": ("good", "great"), "negative": ("bad", "dull")}
    if "bo" in words:
        adjectives = {"positive": ("good", "dull"), "negative": ("bad", "great")}
    rows = []
    for n in range(count):
        label = LABELS[n % 2]
        one, two, three = random.choice(words, 3)
        last = random.choice(adjectives[label])
        said = ["the", one, two, "was", three, "so", last]
        rows.append({"text": " ".join(said), "label": label})
    return rows


def write_domains(root, domains=DOMAINS, **changes):
    """Task folders of all domains below `root`."""
    for place, (name, words) in enumerate(domains.items()):
        splits = {
            split: rows_of(words, count, 10 * place + k)
            for k, (split, count) in enumerate(
                {"train": 80, "dev": 16, "test": 16}.items()
            )
        }
        folder = write_task(root / name, **changes)
        for split, rows in splits.items():
            write_rows(folder, split, rows)
    return root


def write_rows(folder, split, rows):
    """Replaces a split of a task folder."""
    lines = (json.dumps(row) + "\n" for row in rows)
    (folder / f"{split}.jsonl").write_text("".join(lines))
