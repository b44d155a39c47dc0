"""One vocabulary for the models of a merge."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fusion_jax.checkpoints.vocabulary.alignment import Alignment
from fusion_jax.checkpoints.vocabulary.options import read_options

__all__ = ["Alignment", "Vocabulary", "align"]


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of one model folder.

    Attributes:
      folder: of the model.
      ids: token -> id, in the order of ids.
      added: tokens that are matched in the raw text, before the tokenizer's model,
        -> their flags (single_word, lstrip, rstrip, normalized, special).
      rows: height of the embedding as config.json says it, which may be more than
        there are tokens; None where it does not say.
    """

    folder: Path
    ids: Mapping[str, int]
    added: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rows: int | None = None


def align(
    vocabularies: Mapping[str, Vocabulary], options: Mapping[str, Any]
) -> Alignment:
    """One vocabulary for several models.

    The donor (the base, or the model that `source` names; without a base the first)
    keeps its ids. With 'union' the tokens of the others follow in the order of the
    models and of their own ids; then tokens of `options['tokens']` that are still
    missing, in the order in which they are written. Nothing is drawn or hashed: equal
    inputs give equal ids.

    Args:
      vocabularies: label -> vocabulary, in the order of the models.
      options:
        base: label, or None where the merge has no base.
        source: 'union' (default), 'base' or a label: whose tokens the output has.
        pad_to_multiple_of: of the number of rows; None leaves it.
        tokens: token -> {'source': label | {'kind': 'zero'} | {'kind':
          'model_token', 'model': label, 'token_id': int or 'token': str}, 'force':
          bool}: the row for models that lack the token, with force for all. A token
          that no vocabulary has gets a row of its own.

    Returns:
      The alignment.

    Raises:
      CheckpointError: no tokens, unknown options or labels, rows that a model has not;
        all are listed.
    """
    chosen = read_options(vocabularies, options)
    donor = vocabularies[chosen.donor]
    ids = dict(sorted(donor.ids.items(), key=lambda item: item[1]))
    # A gap in the donor's ids stays one: its tokenizer must keep its meaning.
    height = 1 + max(ids.values())
    others = vocabularies.values() if chosen.union else ()
    later = [
        token
        for other in others
        for token in sorted(other.ids, key=other.ids.__getitem__)
    ]
    for token in [*later, *chosen.rows]:
        if token not in ids:
            ids[token] = height
            height += 1
    places = np.fromiter(ids.values(), np.int64, len(ids))
    own = np.full((len(vocabularies), height), -1, np.int64)
    notes = []
    for k, (label, vocabulary) in enumerate(vocabularies.items()):
        found = (vocabulary.ids.get(token, -1) for token in ids)
        own[k, places] = np.fromiter(found, np.int64, len(ids))
        if vocabulary.rows is not None:
            beyond = [t for t, i in vocabulary.ids.items() if i >= vocabulary.rows]
            if beyond:
                notes.append(
                    f"{label}: its embedding has {vocabulary.rows} rows and none for "
                    f"{', '.join(map(repr, beyond[:5]))}"
                    f"{f' and {len(beyond) - 5} more' if len(beyond) > 5 else ''}; "
                    "they count as absent there"
                )
    multiple = chosen.pad_to_multiple_of or 1
    return Alignment(
        ids=ids,
        num_rows=-(-height // multiple) * multiple,
        labels=tuple(vocabularies),
        donor=chosen.donor,
        base=chosen.base,
        own=own,
        fixed={
            ids[token]: given
            for token, (given, configured) in chosen.rows.items()
            if configured
        },
        forced=tuple(ids[token] for token in chosen.forced),
        notes=tuple(notes),
    )
