"""Finding the scene that a line was spoken in, by the letters of the line."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise

_ANONYMOUS = re.compile(r"@ent\d+")
_NOT_A_LETTER = re.compile(r"[^a-z0-9]+")
_WIDTH = 10
_TELLING = 14


def letters(text: str) -> str:
    """Letters and digits in lower case: the same however a text was tokenised."""
    return _NOT_A_LETTER.sub("", text.lower())


class SceneIndex:
    """Lines of known scenes by their runs of ten letters."""

    def __init__(self) -> None:
        """Starts empty; `add` the lines."""
        self._scenes: dict[str, set[str]] = defaultdict(set)
        self._short: dict[str, set[str]] = defaultdict(set)

    def add(self, scene: str, text: str) -> None:
        """Notes a line of a scene; anonymised names (@ent01) cut it in pieces."""
        for piece in _ANONYMOUS.split(text):
            plain = letters(piece)
            for run in _runs(plain):
                self._scenes[run].add(scene)
            if plain and len(plain) < _WIDTH:
                self._short[plain].add(scene)

    def shares(self, text: str, prefix: str = "") -> dict[str, float]:
        """Scene -> share of the line's runs found there, for scenes of `prefix`.

        A line shorter than a run counts where it stands as a whole line, at half
        weight: 'What?' is said in many scenes.
        """
        plain = letters(text)
        runs = _runs(plain)
        if not runs:
            found = self._short.get(plain, ())
            return {scene: 0.5 for scene in found if scene.startswith(prefix)}
        votes = Counter(
            scene
            for run in runs
            for scene in self._scenes.get(run, ())
            if scene.startswith(prefix)
        )
        return {scene: count / len(runs) for scene, count in votes.items()}

    def place(
        self, lines: Sequence[str], prefix: str = "", least: float = 0.7
    ) -> list[str]:
        """The scene of each line of a dialogue, '' where there is no evidence.

        A dialogue may run on into the next scene, so lines are placed one by one; a
        line that alone says little follows its neighbours where they agree, or the
        nearest one at the ends. A dialogue of which less than half the telling lines
        are found is not placed at all: it is from a scene that is not in the index.

        Args:
          lines: lines in the order spoken.
          prefix: 's01_e02' when the episode is known.
          least: share of a line's runs that must be found in a scene.

        Returns:
          A scene id or '' for each line.
        """
        shares = [self.shares(line, prefix) for line in lines]
        total: Counter[str] = Counter()
        for line in shares:
            total.update(line)
        placed = [""] * len(lines)
        telling = [n for n, line in enumerate(lines) if len(letters(line)) >= _TELLING]
        for number in telling:
            line = shares[number]
            # Among scenes with the same words, the one that fits the dialogue.
            best = max(line, key=partial(_fit, line, total), default="")
            if best and line[best] >= least:
                placed[number] = best
        anchors = [number for number in telling if placed[number]]
        if not anchors or 2 * len(anchors) < len(telling):
            return [""] * len(lines)
        for first, second in pairwise(anchors):
            if placed[first] == placed[second]:
                placed[first:second] = [placed[first]] * (second - first)
        first, last = anchors[0], anchors[-1]
        placed[:first] = [placed[first]] * first
        placed[last + 1 :] = [placed[last]] * (len(placed) - last - 1)
        return placed

    def __len__(self) -> int:
        """Distinct runs."""
        return len(self._scenes)


def _fit(
    shares: Mapping[str, float], total: Mapping[str, float], scene: str
) -> tuple[float, float, str]:
    return shares[scene], total[scene], scene


def _runs(plain: str) -> list[str]:
    return [plain[i : i + _WIDTH] for i in range(len(plain) - _WIDTH + 1)]
