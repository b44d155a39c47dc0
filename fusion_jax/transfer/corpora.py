"""The texts of tasks as token ids, equally much of each; which tasks are left out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fusion_jax.data.encoded import Encoded
from fusion_jax.data.segments import Input, Segments, fit
from fusion_jax.data.task import Task
from fusion_jax.transfer.distinct import Terms, distinct_texts, parts, term_ids
from fusion_jax.transfer.exclusion import Rules, foreign


class Corpus(NamedTuple):
    """The texts of one task.

    Attributes:
      name: of the task.
      terms: token ids of its first texts, uncut and without special tokens: at least
        the budget of the study, where distributions are of.
      inputs: n texts as an encoder reads them, cut; the same n for every task.
    """

    name: str
    terms: Terms
    inputs: Encoded


class Corpora(NamedTuple):
    """What is read of each task of a study: equally much.

    Attributes:
      kept: tasks that can be compared, in the order given.
      left_out: name -> why.
      budget: tokens that term distributions are of.
      narrowest: the task of fewest tokens, whose size `budget` is; "" of a given one.
    """

    kept: tuple[Corpus, ...]
    left_out: Mapping[str, str]
    budget: int
    narrowest: str

    @property
    def names(self) -> tuple[str, ...]:
        """Of the tasks kept."""
        return tuple(corpus.name for corpus in self.kept)

    @property
    def texts(self) -> int:
        """Texts of each task that samples of vectors are of."""
        return len(self.kept[0].inputs)


def read_corpora(
    tasks: Sequence[Task],
    tokenizer: Any,
    *,
    split: str = "train",
    budget: int = 0,
    texts: int = 200,
    max_length: int = 128,
    rules: Rules | None = None,
    seed: int = 0,
) -> Corpora:
    """Reads the texts of tasks.

    A text that occurs twice in a task counts once. Texts come in the order of a seeded
    hash of themselves, so that neither the order of rows nor the name of a task says
    which are drawn: two tasks of the same texts give the same.

    Args:
      tasks: of different names.
      tokenizer: of `data.tokenise.load_tokenizer`.
      split: that is read.
      budget: tokens of each task for term distributions; 0 = as many as the task that
        has fewest. A task with less than a budget that is given is left out.
      texts: of each task for samples, at most; never more than the smallest task has.
      max_length: tokens of a text that the encoder reads.
      rules: when a task is left out; None = the defaults.
      seed: of the order of texts.

    Returns:
      The corpora; tasks that cannot be compared are in `left_out`.

    Raises:
      ValueError: two tasks of one name, or fewer than two tasks are left: it lists
        all reasons.
    """
    rules = Rules() if rules is None else rules
    names = [task.name for task in tasks]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise ValueError(
            f"tasks: the names {', '.join(twice)} occur twice; name each task once"
        )
    left_out: dict[str, str] = {}
    found: dict[str, list[Segments]] = {}
    for task in tasks:
        read = distinct_texts(task, tokenizer.sep_token or "", split, rules, seed)
        if isinstance(read, str):
            left_out[task.name] = read
        else:
            found[task.name] = read
    terms: dict[str, Terms] = {}
    limit, narrowest = budget, ""
    while found:
        terms, limit, narrowest = _terms(found, tokenizer, budget)
        bad = _unfit(terms, tokenizer.unk_token_id, limit, rules)
        left_out |= bad
        found = {name: x for name, x in found.items() if name not in bad}
        # Who is left out must not say how much the others are read.
        if not bad:
            break
    if len(found) < 2:
        told = "\n  ".join(f"{name}: {why}" for name, why in left_out.items())
        raise ValueError(
            f"{len(found)} of {len(tasks)} tasks can be compared; two are needed"
            + (f"\n  {told}" if told else "")
        )
    count = min(texts, *map(len, found.values()))
    kept = []
    for name in (name for name in names if name in found):
        inputs = fit(found[name][:count], tokenizer, max_length)
        encoded = _encoded(name, inputs, tokenizer.pad_token_id)
        kept.append(Corpus(name, terms[name], encoded))
    why = {name: left_out[name] for name in names if name in left_out}
    return Corpora(tuple(kept), why, limit, narrowest)


def _terms(
    found: Mapping[str, Sequence[Segments]], tokenizer: Any, budget: int
) -> tuple[dict[str, Terms], int, str]:
    """Token ids of each task's first texts, how many of them count, and by whom.

    The shortest task is read first: of the others no more is needed than it has.
    """
    lengths = {
        name: sum(len(part) for one in texts for part in parts(one))
        for name, texts in found.items()
    }
    limit, narrowest, read = budget, "", {}
    for name in sorted(found, key=lambda name: (lengths[name], name)):
        read[name] = term_ids(found[name], tokenizer, limit)
        if not budget and (not narrowest or _size(read[name]) < limit):
            limit, narrowest = _size(read[name]), name
    return read, limit, narrowest


def _unfit(
    terms: Mapping[str, Terms], unknown: int | None, limit: int, rules: Rules
) -> dict[str, str]:
    """Tasks whose tokens cannot be compared with the others', and why."""
    found = {}
    for name, ids in terms.items():
        tokens, strange = _size(ids), sum(int(np.sum(x == unknown)) for x in ids)
        if not tokens or strange > rules.unknown * tokens:
            found[name] = (
                f"{strange} of {tokens} tokens are unknown to the tokenizer: another "
                "language or encoding than the encoder's"
            )
        elif tokens < limit:
            found[name] = (
                f"{tokens} tokens, fewer than the budget of {limit}; lower the budget, "
                "or give the task more texts"
            )
    rest = {name: ids for name, ids in terms.items() if name not in found}
    return found | foreign(rest, unknown, rules)


def _size(ids: Terms) -> int:
    return sum(map(len, ids))


def _encoded(name: str, inputs: Sequence[Input], padding: int | None) -> Encoded:
    """Inputs without a question."""
    return Encoded(
        task_name=name,
        kind="single_label",
        num_labels=0,
        columns={
            "input_ids": [i.ids for i in inputs],
            "token_type_ids": [i.type_ids for i in inputs],
        },
        targets={},
        lengths=np.array([len(i.ids) for i in inputs], np.int32),
        items=np.arange(len(inputs)),
        references=(),
        pad_token_id=padding or 0,
    )
