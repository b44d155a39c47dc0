"""Which chat template the tokenizer of a merge gets."""

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fusion_jax import atomic
from fusion_jax.checkpoints.tensors import CheckpointError
from fusion_jax.checkpoints.vocabulary.tokenizer_json import CONFIG, read_object

FILE = "chat_template.jinja"
MORE = "additional_chat_templates"

TEMPLATES = {
    # Every turn between <|im_start|> and <|im_end|>, the role on the first line.
    "chatml": (
        "{%- for message in messages -%}\n"
        "{{ '<|im_start|>' + message.role + '\\n' + message.content }}"
        "{{ '<|im_end|>\\n' }}\n"
        "{%- endfor -%}\n"
        "{%- if add_generation_prompt -%}\n"
        "{{ '<|im_start|>assistant\\n' }}\n"
        "{%- endif -%}"
    ),
}
"""Name -> Jinja text."""


def chat_template(option: str, folders: Sequence[Path]) -> str | None:
    """The template that an option stands for.

    Args:
      option: 'auto' for the one that most input models have (the first of equals), a
        name of `TEMPLATES`, or a Jinja text.
      folders: of the input models, in their order.

    Returns:
      Jinja text; None if 'auto' finds no template.

    Raises:
      CheckpointError: an unknown name.
    """
    if option == "auto":
        found = [text for folder in folders if (text := read_template(folder))]
        # Of equal counts the one that was met first comes first.
        return Counter(found).most_common(1)[0][0] if found else None
    if option in TEMPLATES:
        return TEMPLATES[option]
    if "{{" in option or "{%" in option:
        return option
    raise CheckpointError(
        f"chat template {option!r} is neither 'auto', nor a name that is known "
        f"({', '.join(TEMPLATES)}), nor a Jinja text; write the template out or take "
        "it from an input model with 'auto'"
    )


def read_template(folder: Path) -> str | None:
    """The default chat template of a model folder, None if it has none."""
    if (folder / FILE).is_file():
        return (folder / FILE).read_text(encoding="utf-8")
    file = folder / CONFIG
    text = read_object(file).get("chat_template") if file.is_file() else None
    if isinstance(text, list):
        named = {entry["name"]: entry["template"] for entry in text}
        text = named.get("default")
    return text if isinstance(text, str) else None


def write_template(folder: Path, text: str) -> None:
    """Makes a text the only chat template of a folder.

    It stands in tokenizer_config.json, where every version of transformers looks, and
    not in a file of its own, which newer ones would prefer.
    """
    (folder / FILE).unlink(missing_ok=True)
    shutil.rmtree(folder / MORE, ignore_errors=True)
    file = folder / CONFIG
    config = read_object(file) if file.is_file() else {}
    atomic.write_json(file, {**config, "chat_template": text})
