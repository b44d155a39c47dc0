"""A tiny random BERT directory and hand-written task folders, all real files."""

import json

import jax

from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.models import build_model
from fusion_jax.models.config import EncoderConfig

WORDS = """the a film was is so good great fine bad dull poor i we liked hated it very
not who saw ada bo sat home at in and""".split()
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##s", "##ed", "."]
LABELS = ("negative", "positive")


def write_tokenizer(folder):
    """A WordPiece tokenizer of a few words."""
    from transformers import BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def write_model(folder, *, kind=None, labels=(), seed=0, tokenizer=True):
    """A BERT of two layers with random weights, or with a head of a kind."""
    config = EncoderConfig(
        family="bert",
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        intermediate_size=16,
        max_positions=40,
    )
    params = dict(
        build_model(config, kind or "single_label", max(len(labels), 1)).init(
            jax.random.key(seed)
        )
    )
    if kind is None:
        del params["head"]
    words = write_tokenizer(folder.parent / "words") if tokenizer else None
    return hf.save(
        folder, params, config, kind=kind, labels=labels, tokenizer_from=words
    )


def sentences(count, shift=0):
    """Rows of a sentiment task; the adjective decides."""
    words = {"positive": ("good", "great", "fine"), "negative": ("bad", "dull", "poor")}
    rows = []
    for n in range(shift, shift + count):
        label = LABELS[n % 2]
        text = f"the film was {('so', 'very')[n // 2 % 2]} {words[label][n % 3]}"
        rows.append({"text": text, "label": label})
    return rows


def write_task(folder, *, labels=LABELS, test=True, **files):
    """A task folder: twelve training rows, eight of dev and of test."""
    folder.mkdir(parents=True, exist_ok=True)
    splits = {"train": sentences(12), "dev": sentences(8, 1)}
    if test:
        splits["test"] = sentences(8, 2)
    for split, rows in {**splits, **files}.items():
        lines = (json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text("".join(lines))
    (folder / "labels.json").write_text(json.dumps(list(labels)))
    return folder
