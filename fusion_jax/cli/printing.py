"""What a command prints: text for people, or JSON for machines."""

import argparse
import json
from collections.abc import Mapping
from typing import Any


def tell(options: argparse.Namespace, record: Mapping[str, Any], text: str) -> None:
    """Prints the record where --json was given, else the text."""
    print(json.dumps(record) if options.json else text)
