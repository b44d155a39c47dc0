"""Manifests of a weight repository: what a base and a contribution say of themselves.

JSON with sorted keys, so that one content has one text and one hash. What a manifest
says is checked when it is read; nothing in a repository is trusted without one.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, TypeVar

from fusion_jax.checkpoints.object_names import is_name

SCHEMA = 1
"""Raised where an older reader would misunderstand; newer optional fields do not."""


class ManifestError(ValueError):
    """A manifest cannot be used; names the object, the field and the remedy."""


class NewerSchema(ManifestError):
    """A manifest that a newer version of fusion_jax reads."""


@dataclass(frozen=True)
class TensorFile:
    """A safetensors object.

    Attributes:
      name: of the object in the store.
      sha256: of its bytes.
      bytes: its size.
      tensors: tensor -> [dtype as safetensors names it, shape].
    """

    name: str
    sha256: str
    bytes: int
    tensors: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BaseReference:
    """A base by its round and the hash of its weights.

    Attributes:
      round: its number.
      sha256: of its weights.
    """

    round: int
    sha256: str


@dataclass(frozen=True)
class ContributionManifest:
    """What a contributor uploads beside the body of a fine-tuned model.

    Attributes:
      contributor: who.
      run: hash of (base, data, config, seed): a repeated job finds its own manifest.
      base: that the fine-tune began from.
      weights: the body; heads never leave the contributor.
      task: name of the task.
      data_sha256: of the rows, which stay where they are.
      licence: of the data, where known.
      rows: training rows.
      config: how it was trained.
      seed: of the training.
      scores: on the contributor's own dev rows, for people to read.
      statistics: a file of Gram matrices or Fisher information, for merges that read
        it; None without.
      versions: package -> version.
      created: UTC time by the contributor's clock; nothing is decided by it.
      writer: a nonce, by which a writer knows its own success again.
    """

    contributor: str
    run: str
    base: BaseReference
    weights: TensorFile
    task: str
    data_sha256: str
    rows: int
    config: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    licence: str = ""
    scores: Mapping[str, Any] = field(default_factory=dict)
    statistics: TensorFile | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    writer: str = ""


@dataclass(frozen=True)
class Part:
    """A contribution that went into a base.

    Attributes:
      manifest: name of its manifest.
      manifest_sha256: of that object's bytes.
      contributor: who.
      task: on what.
      sha256: of its weights.
      base_round: of the base that it began from.
      weight: its share, of sum one over all parts.
      licence: of its data, where known.
      scores: on the contributor's own dev rows, as it told them.
    """

    manifest: str
    manifest_sha256: str
    contributor: str
    task: str
    sha256: str
    base_round: int
    weight: float
    licence: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Rejected:
    """A contribution that was left out.

    Attributes:
      manifest: name of its manifest.
      manifest_sha256: of that object's bytes.
      contributor: who, as the manifest says, '' where it cannot be read.
      reasons: why, each one a sentence.
    """

    manifest: str
    manifest_sha256: str
    contributor: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class BaseManifest:
    """A base: promoted by the creation of its manifest.

    Attributes:
      round: its number; base 0 is what the repository began with.
      weights: its weights, in the layout of Hugging Face.
      parent: the base before it; None of base 0 of a repository that is no fork.
      parts: what went in, in the order of the hashes of weights.
      rejected: what was left out, and why.
      verdicts: name of the contribution's manifest -> the whole verdict of the screen.
      operator: 'method', 'options', 'server_rate', 'optimizer' and the rest of what
        decides the weights, and 'screen', the limits.
      clipped: SHA-256 of a contribution's weights -> what its way was multiplied by;
        those alone that were shortened.
      notes: what the method did not do, for people.
      optimizer: state of a server optimizer; None without one.
      memory: 'accumulator_bytes' and 'peak_bytes' of the fuse.
      seconds: of each of its stages.
      model: name of a companion file -> SHA-256; of base 0.
      reason: why a fork was made, or what the base 0 came from.
      fork_of: the base that a fork stands in the place of; None of a plain repository.
      versions, created, writer: as in a contribution.
    """

    round: int
    weights: TensorFile
    parent: BaseReference | None = None
    parts: tuple[Part, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    verdicts: Mapping[str, Any] = field(default_factory=dict)
    operator: Mapping[str, Any] = field(default_factory=dict)
    clipped: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    optimizer: TensorFile | None = None
    memory: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    model: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""
    fork_of: BaseReference | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    writer: str = ""

    @property
    def reference(self) -> BaseReference:
        """What contributions name it by."""
        return BaseReference(self.round, self.weights.sha256)


Manifest = TypeVar("Manifest", BaseManifest, ContributionManifest)

KINDS: Mapping[type, str] = {
    BaseManifest: "base",
    ContributionManifest: "contribution",
}
# Field -> what its mapping, or each of its list's mappings, becomes.
_NESTED: Mapping[str, type] = {
    "base": BaseReference,
    "parent": BaseReference,
    "fork_of": BaseReference,
    "weights": TensorFile,
    "statistics": TensorFile,
    "optimizer": TensorFile,
}
_LISTS: Mapping[str, type] = {"parts": Part, "rejected": Rejected}
_SENTENCES = ("reasons", "notes")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def dump(manifest: BaseManifest | ContributionManifest) -> bytes:
    """The text of a manifest; NaN is refused."""
    record = {"schema": SCHEMA, "kind": KINDS[type(manifest)], **asdict(manifest)}
    text = json.dumps(record, sort_keys=True, indent=1, allow_nan=False)
    return (text + "\n").encode()


def load(kind: type[Manifest], data: bytes, name: str) -> Manifest:
    """Reads a manifest.

    Args:
      kind: `BaseManifest` or `ContributionManifest`.
      data: the object's bytes.
      name: of the object, for messages.

    Raises:
      ManifestError: no JSON, another kind, a newer schema, or fields that are missing
        or of another type; all of them are named. Fields that are not known are left
        out: a newer version may say more.
    """
    try:
        record = json.loads(data, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ManifestError(
            f"{name}: no JSON ({error}); it was not written by fusion_jax, or damaged"
        ) from error
    if not isinstance(record, dict) or record.get("kind") != KINDS[kind]:
        raise ManifestError(f"{name}: no manifest of a {KINDS[kind]}")
    schema = record.get("schema")
    if not isinstance(schema, int) or schema > SCHEMA:
        raise NewerSchema(
            f"{name}: schema {schema!r}, this version of fusion_jax reads up to "
            f"{SCHEMA}: install a newer one"
        )
    faults: list[str] = []
    made = _make(kind, record, faults, "")
    if faults or made is None:
        raise ManifestError(f"{name}: {'; '.join(faults)}")
    return made


def sha256(data: bytes) -> str:
    """SHA-256 (hex) of an object's bytes."""
    return hashlib.sha256(data).hexdigest()


def _make(kind: type, record: Any, faults: list[str], where: str) -> Any:
    """An object of a dataclass from a mapping; what is wrong is added to `faults`."""
    if not isinstance(record, Mapping):
        faults.append(f"{where.rstrip('.')} is no object")
        return None
    values: dict[str, Any] = {}
    for entry in fields(kind):
        if entry.name not in record:
            continue
        value = record[entry.name]
        place = f"{where}{entry.name}"
        if entry.name in _NESTED:
            # Null stands for what may be missing, and for nothing else.
            if value is not None or entry.default is not None:
                value = _make(_NESTED[entry.name], value, faults, f"{place}.")
        elif entry.name in _LISTS:
            if not isinstance(value, list):
                faults.append(f"{place} is no list")
                continue
            value = tuple(
                _make(_LISTS[entry.name], one, faults, f"{place}[{i}].")
                for i, one in enumerate(value)
            )
        elif entry.name in _SENTENCES and isinstance(value, list):
            value = tuple(str(sentence) for sentence in value)
        elif not _fits(entry.type, value):
            faults.append(f"{place} is {repr(value)[:80]}")
            continue
        elif entry.name.endswith("sha256") and not _SHA256.fullmatch(value):
            faults.append(f"{place} is no SHA-256: {value[:80]!r}")
        elif kind is TensorFile and entry.name == "name" and not is_name(value):
            faults.append(f"{place} is no name of an object: {value[:80]!r}")
        values[entry.name] = value
    missing = [
        f"{where}{entry.name} is missing"
        for entry in fields(kind)
        if entry.name not in record
        and entry.default is MISSING
        and entry.default_factory is MISSING
    ]
    faults.extend(missing)
    return None if faults else kind(**values)


def _fits(declared: Any, value: Any) -> bool:
    if declared is str:
        return isinstance(value, str)
    if declared is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if declared is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, Mapping)


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no number")
