"""fusion-jax predict: what a model says of texts, one line a row."""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fusion_jax.cli.models import add_model_arguments

NONE = "-"
"""Stands for a multi-label row without a label."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_model_arguments(parser)
    rows = parser.add_mutually_exclusive_group()
    rows.add_argument(
        "--text",
        action="append",
        metavar="TEXT",
        help="may be repeated; stdin is read without --text and --input",
    )
    rows.add_argument(
        "--input",
        metavar="FILE",
        help="rows as .jsonl or .csv (also "
        ".gz), or lines of text; columns as in a task folder",
    )
    parser.add_argument(
        "--context",
        help="earlier text, or the passage that holds the answer, for each --text",
    )
    parser.add_argument(
        "--decision",
        default="",
        metavar="RULE",
        help="of a multi-label model: sigmoid:0.5, softmax:0.1",
    )


def run(options: argparse.Namespace) -> None:
    """Prints the label and its probability for each row; JSON objects with --json."""
    from fusion_jax import runtime
    from fusion_jax.systems.answers import answers

    rows = _rows(options)
    runtime.initialize()
    records = answers(
        options.model,
        rows,
        decision=options.decision,
        max_length=options.max_length,
        dtype=options.dtype,
    )
    for record in records:
        print(json.dumps(record, ensure_ascii=False) if options.json else line(record))


def line(record: Mapping[str, Any]) -> str:
    """One row for people and `cut`: the answer, a tab, how sure the model is."""
    if "label" in record:
        return f"{record['label']}\t{record['probability']:.3f}"
    if "labels" in record:
        chances = (record["probabilities"][name] for name in record["labels"])
        return (
            f"{','.join(record['labels']) or NONE}\t"
            f"{','.join(f'{chance:.3f}' for chance in chances) or NONE}"
        )
    if "tags" in record:
        pairs = zip(record["tokens"], record["tags"], strict=True)
        return " ".join(f"{token}/{tag}" for token, tag in pairs)
    return f"{record['answer']}\t{record['confidence']:.3f}"


def _rows(options: argparse.Namespace) -> list[tuple[str, Mapping[str, Any]]]:
    from fusion_jax.cli.failures import WrongUsage

    if options.text is not None:
        context = {} if options.context is None else {"context": options.context}
        return [
            (f"--text {n}", {"text": text, **context})
            for n, text in enumerate(options.text, 1)
        ]
    if options.context is not None:
        raise WrongUsage("--context goes with --text; rows of a file have a column")
    if options.input is None:
        return list(_of_lines("stdin", sys.stdin))
    return list(_of_file(Path(options.input)))


def _of_file(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    from fusion_jax.data.files import FORMS, read_rows
    from fusion_jax.data.task import TaskError, report

    if not path.name.endswith(FORMS):
        with path.open(encoding="utf-8") as file:
            yield from _of_lines(path.name, file)
        return
    found = list(read_rows(path))
    problems = [f"{path.name}:{n}: {row}" for n, row in found if isinstance(row, str)]
    if problems:
        raise TaskError(report(str(path), problems))
    yield from (
        (f"{path.name}:{n}", row) for n, row in found if not isinstance(row, str)
    )


def _of_lines(
    name: str, lines: Iterable[str]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A line that opens a brace is a JSON object, any other a text."""
    for number, text in enumerate(lines, 1):
        text = text.strip()
        if not text:
            continue
        row: Any = {"text": text}
        if text.startswith("{"):
            try:
                row = json.loads(text)
            except ValueError as error:
                raise ValueError(f"{name}:{number}: not JSON ({error})") from error
        yield f"{name}:{number}", row
