"""What a merge asks of its output vocabulary, read with every fault named."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from fusion_jax.checkpoints.tensors import CheckpointError

_KEYS = ("source", "base", "pad_to_multiple_of", "tokens")


class TokenRow(NamedTuple):
    """A row of a model's tensor."""

    model: str
    row: int


class Chosen(NamedTuple):
    """Options that make sense.

    Attributes:
      union: whether the other models' tokens join the donor's.
      donor: label of the model whose ids stay.
      base: label, or None.
      pad_to_multiple_of: or None.
      rows: token -> (row or None, whether the options say so). (None, True) is zeros;
        (None, False) leaves the row to the rule.
      forced: tokens whose row goes to every model.
    """

    union: bool
    donor: str
    base: str | None
    pad_to_multiple_of: int | None
    rows: Mapping[str, tuple[TokenRow | None, bool]]
    forced: tuple[str, ...]


class _Vocabulary(Protocol):
    @property
    def ids(self) -> Mapping[str, int]: ...
    @property
    def rows(self) -> int | None: ...


def read_options(
    vocabularies: Mapping[str, _Vocabulary], options: Mapping[str, Any]
) -> Chosen:
    """Checks the options of `vocabulary.align` against the models.

    Raises:
      CheckpointError: names every fault.
    """
    known = ", ".join(vocabularies) or "none"
    faults = [
        f"option {key!r} is unknown; known are {', '.join(_KEYS)}"
        for key in options
        if key not in _KEYS
    ]
    faults += [f"{m} has no tokens" for m, v in vocabularies.items() if not v.ids]
    if not vocabularies:
        faults.append("no model is given")
    base, source = options.get("base"), options.get("source") or "union"
    if base is not None and base not in vocabularies:
        faults.append(f"base {base!r} is no model here; there are {known}")
    if source == "base" and base is None:
        faults.append("source 'base' needs a base, and this merge has none")
    if source not in ("union", "base") and source not in vocabularies:
        faults.append(
            f"source {source!r} is neither 'union', 'base' nor one of {known}"
        )
    multiple = options.get("pad_to_multiple_of")
    if multiple is not None and (type(multiple) is not int or multiple < 1):
        faults.append(f"pad_to_multiple_of must be 1 or more; it is {multiple!r}")
    tokens = options.get("tokens") or {}
    rows: dict[str, tuple[TokenRow | None, bool]] = {}
    forced = []
    if not isinstance(tokens, Mapping):
        faults.append(f"tokens must map tokens to options; it is {tokens!r}")
        tokens = {}
    for token, entry in tokens.items():
        entry = {} if entry is None else entry
        where = f"token {token!r}"
        if not isinstance(token, str) or not token:
            faults.append(f"{where} is no text; quote it")
        elif not isinstance(entry, Mapping) or set(entry) - {"source", "force"}:
            faults.append(f"{where} takes 'source' and 'force'; it has {entry!r}")
        elif not isinstance(entry.get("force", False), bool):
            faults.append(
                f"{where}: force must be true or false, not {entry['force']!r}"
            )
        else:
            rows[token] = _row(vocabularies, base, token, entry.get("source"), faults)
            if entry.get("force"):
                forced.append(token)
    if faults:
        raise CheckpointError(
            "the options of the tokenizer cannot be followed:\n  " + "\n  ".join(faults)
        )
    named = base if source == "base" else source
    return Chosen(
        union=source == "union",
        donor=str(base or next(iter(vocabularies)) if source == "union" else named),
        base=base,
        pad_to_multiple_of=multiple,
        rows=rows,
        forced=tuple(forced),
    )


def _row(
    vocabularies: Mapping[str, _Vocabulary],
    base: str | None,
    token: str,
    source: Any,
    faults: list[str],
) -> tuple[TokenRow | None, bool]:
    """The row that one entry of `tokens` configures; faults are appended."""
    where = f"token {token!r}"
    if source is None:
        return None, False
    if isinstance(source, str):
        source = {"kind": "model_token", "model": source, "token": token}
    if not isinstance(source, Mapping):
        faults.append(f"{where}: source {source!r} is neither a model nor a mapping")
        return None, True
    kind = source.get("kind")
    if kind == "zero":
        if set(source) != {"kind"}:
            faults.append(f"{where}: a source of kind 'zero' takes nothing else")
        return None, True
    if kind != "model_token" or set(source) - {"kind", "model", "token_id", "token"}:
        faults.append(
            f"{where}: its source must be a model, {{kind: zero}} or {{kind: "
            f"model_token, model, token_id or token}}; it is {dict(source)!r}"
        )
        return None, True
    model = source.get("model")
    if model == "base" and model not in vocabularies:
        model = base
    if not isinstance(model, str) or model not in vocabularies:
        faults.append(
            f"{where}: {model!r} is no model here; there are {', '.join(vocabularies)}"
        )
        return None, True
    other, number = source.get("token"), source.get("token_id")
    if (other is None) == (number is None):
        faults.append(f"{where}: give one of token and token_id of {model}")
        return None, True
    ids, height = vocabularies[model].ids, vocabularies[model].rows
    if number is None:
        if not isinstance(other, str) or other not in ids:
            faults.append(f"{where}: the vocabulary of {model} has no token {other!r}")
            return None, True
        number = ids[other]
    # A row beyond the tokens may be padding of the embedding, which config.json knows.
    limit = 1 + max(ids.values(), default=-1) if height is None else height
    if type(number) is not int or not 0 <= number < limit:
        faults.append(
            f"{where}: row {number!r} is outside the {limit} rows of {model} (0 to "
            f"{limit - 1})"
        )
    return TokenRow(model, number), True
