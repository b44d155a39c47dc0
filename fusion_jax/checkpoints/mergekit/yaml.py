"""YAML text as plain data that still knows the line of every entry."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

Path = tuple[str | int, ...]
"""Keys and list positions from the top: ('models', 0, 'parameters')."""


class MergekitError(ValueError):
    """A file of mergekit's that cannot be read or carried out; all faults at once."""


@dataclass
class Reading:
    """What was found wrong or worth saying while one file was read.

    Attributes:
      lenient: unknown keys are warnings.
      lines: path -> line in the file, from 1.
      faults: each a sentence; any of them makes the file an error.
      notes: each a sentence for the person.
    """

    lenient: bool = False
    lines: dict[Path, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def fault(self, path: Path, text: str) -> None:
        """Keeps an error for `check`."""
        self._add(self.faults, f"{self.where(path)}{text}")

    def note(self, path: Path, text: str) -> None:
        """Keeps a line for the person."""
        self._add(self.notes, f"{self.where(path)}{text}")

    def unknown(self, path: Path, known: Iterable[str]) -> None:
        """A name that means nothing, with the nearest that does."""
        known = sorted(known)
        near = difflib.get_close_matches(str(path[-1]), known, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
        text = f"'{path[-1]}' is unknown; {hint}"
        if self.lenient:
            self.note(path, f"{text} (ignored)")
        else:
            self.fault(path, text)

    def check_keys(
        self, data: Mapping[str, Any], known: Iterable[str], path: Path
    ) -> None:
        """`unknown` for every key of a mapping that is not among the known ones."""
        for key in data:
            if key not in known:
                self.unknown((*path, key), known)

    def where(self, path: Path) -> str:
        """'line 3, models[0].parameters: '; empty for the file itself."""
        if not path:
            return ""
        # A path that the text does not spell out stands at its nearest parent's line.
        spelt = next(
            (path[:n] for n in range(len(path), 0, -1) if path[:n] in self.lines), None
        )
        line = f"line {self.lines[spelt]}, " if spelt else ""
        return f"{line}{spell(path)}: "

    def check(self) -> None:
        """Raises what was gathered.

        Raises:
          MergekitError: there is a fault.
        """
        if len(self.faults) == 1:
            raise MergekitError(self.faults[0])
        if self.faults:
            raise MergekitError("\n  ".join(["several faults:", *self.faults]))

    @staticmethod
    def _add(lines: list[str], text: str) -> None:
        if text not in lines:
            lines.append(text)


def spell(path: Path) -> str:
    """models[0].parameters."""
    text = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in path
    )
    return text.removeprefix(".")


def read_yaml(text: str, reading: Reading) -> Mapping[str, Any]:
    """The one document of a YAML text, safely.

    Args:
      text: YAML 1.1.
      reading: receives the lines and the faults.

    Returns:
      The top-level mapping.

    Raises:
      MergekitError: no YAML, no mapping, or more than one document.
    """
    try:
        documents = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise MergekitError(f"not YAML: {error}") from error
    if len(documents) > 1:
        raise MergekitError(
            f"the file holds {len(documents)} YAML documents (a mergekit-multi file), "
            "which is not supported; merge one document after the other"
        )
    if not documents or not isinstance(documents[0], yaml.MappingNode):
        raise MergekitError("the file is no mapping of keys such as merge_method")
    return _Plain(reading).read(documents[0], (), ())


class _Plain:
    """Nodes to data: what `yaml.safe_load` gives, with lines and repeated keys."""

    def __init__(self, reading: Reading):
        self.reading = reading
        self.loader = yaml.SafeLoader("")

    def read(self, node: yaml.Node, path: Path, above: tuple[int, ...]) -> Any:
        self.reading.lines[path] = node.start_mark.line + 1
        if id(node) in above:
            raise MergekitError(f"{self.reading.where(path)}an alias inside itself")
        above = (*above, id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [
                    self.read(item, (*path, place), above)
                    for place, item in enumerate(node.value)
                ]
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path, above)
            return self.loader.construct_object(node)
        except yaml.YAMLError as error:
            raise MergekitError(f"{self.reading.where(path)}{error}") from error

    def _mapping(
        self, node: yaml.MappingNode, path: Path, above: tuple[int, ...]
    ) -> dict[str, Any]:
        written = [
            key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)
        ]
        for key in sorted({key for key in written if written.count(key) > 1}):
            self.reading.fault((*path, key), "the key stands here twice")
        self.loader.flatten_mapping(node)  # what '<<' brings in
        found = {}
        for key, value in node.value:
            name = str(self.loader.construct_object(key, deep=True))
            found[name] = self.read(value, (*path, name), above)
            self.reading.lines[*path, name] = key.start_mark.line + 1
        return found
