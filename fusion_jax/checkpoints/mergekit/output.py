"""What a mergekit file makes of shapes, configuration and vocabulary."""

from collections.abc import Sequence
from typing import Any

from fusion_jax.checkpoints.block_names import is_embedding, is_head, place_of
from fusion_jax.checkpoints.mergekit.config import MergekitConfig
from fusion_jax.checkpoints.mergekit.models import Model, Models
from fusion_jax.checkpoints.mergekit.rows import Row
from fusion_jax.checkpoints.mergekit.yaml import Reading

_DEPTHS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


def check_shapes(rows: Sequence[Row], reading: Reading, *, vocabulary: bool) -> None:
    """Finds tensors that do not fit together.

    Args:
      rows: of the output.
      reading: receives one fault that lists them all.
      vocabulary: whether rows of embeddings will be aligned by token.
    """
    wrong, heights = [], True
    for row in rows:
        models = row.part.models
        shapes = [m.info(t).shape for m, t in zip(models, row.tensors, strict=True)]
        if len(set(shapes)) == 1:
            continue
        by_token = len({shape[1:] for shape in shapes}) == 1 and _has_vocabulary(
            row, [shape[:1] for shape in shapes]
        )
        if by_token and vocabulary:
            continue
        heights &= by_token
        sizes = ", ".join(
            f"'{model.label}' {list(shape)}"
            for model, shape in zip(models, shapes, strict=True)
        )
        wrong.append(f"{row.name} ({sizes})")
    if wrong:
        way = (
            "vocabularies differ: say what becomes of them with tokenizer_source"
            if heights
            else "models of one merge need the same shapes"
        )
        reading.fault((), f"sizes of tensors differ: {'; '.join(wrong)}; {way}")


def config_changes(
    config: MergekitConfig, donor: Model, rows: Sequence[Row], reading: Reading
) -> dict[str, Any]:
    """Keys of config.json that the donor's do not say right for the output.

    Args:
      config: of the file.
      donor: of the configuration.
      rows: of the output.
      reading: receives a note where a key has to be changed by hand.
    """
    changes: dict[str, Any] = {}
    dtype = config.out_dtype or config.dtype
    if dtype is not None:
        changes["torch_dtype" if "torch_dtype" in donor.config else "dtype"] = dtype
    tied = donor.config.get("tie_word_embeddings", False)
    if tied and any(is_head(row.name) for row in rows):
        changes["tie_word_embeddings"] = False
    for stack, held in donor.stacks.items():
        blocks = _blocks(stack, rows)
        if not blocks or len(blocks) == held:
            continue
        # An encoder and a decoder of one length each have a key.
        own = [f"{stack.partition('.')[0]}_layers", "num_decoder_layers"]
        own = own if stack.startswith("decoder") else own[:1]
        key = next(
            (key for key in (*own, *_DEPTHS) if donor.config.get(key) == held), None
        )
        if key is None:
            reading.note(
                (),
                f"config.json of '{donor.label}' names no number of layers that is "
                f"{held}; the output has {len(blocks)} blocks in {stack}",
            )
            continue
        changes[key] = len(blocks)
        kinds = _kinds(blocks)
        if kinds is not None:
            changes["layer_types"] = kinds
    return changes


def tokenizer_options(
    config: MergekitConfig, models: Models, base: str | None, reading: Reading
) -> dict[str, Any] | None:
    """The options of `vocabulary.align`, models named by their labels.

    Args:
      config: of the file.
      models: of the file.
      base: label, or None.
      reading: receives faults.
    """
    if config.tokenizer is None:
        return None
    merged = {
        models.labels[given.model]
        for module in config.modules.values()
        for part in module.slices
        for given in part.inputs
    } | {base}
    tokens = {}
    for token, said in config.tokenizer["tokens"].items():
        source = said["source"]
        named = source if isinstance(source, str) else source.get("model")
        if named is not None:
            label = models.labels[named]
            if label not in merged:
                reading.fault(
                    ("tokenizer", "tokens", token),
                    f"its row is asked of '{named}', which is no input of the merge",
                )
            source = label if isinstance(source, str) else {**source, "model": label}
        tokens[token] = {"source": source, "force": said["force"]}
    source = config.tokenizer["source"]
    if source == "base" and base is None:
        reading.fault(("tokenizer_source",), "'base' needs a base_model")
    return {
        "source": source if source in ("union", "base") else models.labels[source],
        "base": base,
        "pad_to_multiple_of": config.tokenizer["pad_to_multiple_of"],
        "tokens": tokens,
    }


def _has_vocabulary(row: Row, heights: Sequence[tuple[int, ...]]) -> bool:
    return (
        is_head(row.name)
        or is_embedding(row.name)
        or all(
            height == (model.config.get("vocab_size"),)
            for model, height in zip(row.part.models, heights, strict=True)
        )
    )


def _blocks(stack: str, rows: Sequence[Row]) -> dict[int, tuple[Model, int]]:
    """Block of the output -> the first input's model and block."""
    found = {}
    for row in rows:
        place = place_of(row.name, {stack: 1})
        if place is not None:
            source = place_of(row.tensors[0], {stack: 1})
            assert source is not None
            found.setdefault(place.block, (row.part.models[0], source.block))
    return found


def _kinds(blocks: dict[int, tuple[Model, int]]) -> list[str] | None:
    """`layer_types` of the output; None where some model does not say them."""
    kinds = []
    for _, (model, block) in sorted(blocks.items()):
        said = model.config.get("layer_types")
        if not isinstance(said, list) or block >= len(said):
            return None
        kinds.append(said[block])
    return kinds
