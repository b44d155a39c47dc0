"""Models whose output head is their embedding, beside models that have both."""

from collections.abc import Mapping
from dataclasses import replace

from fusion_jax.checkpoints.block_names import is_embedding, is_head
from fusion_jax.checkpoints.lazy import LazyCheckpoint
from fusion_jax.checkpoints.plan import Source


def lend_heads(
    models: Mapping[str, LazyCheckpoint],
) -> tuple[dict[str, LazyCheckpoint], dict[Source, Source]]:
    """Lets a tied model's embedding stand for the head that only others have.

    Args:
      models: by label.

    Returns:
      (models that name the head as well, head -> the tensor that is read for it). Where
      all models are tied, or none is, nothing is lent, and the output is as they are.
    """
    heads = {n for model in models.values() for n in model.tensors if is_head(n)}
    lent: dict[Source, Source] = {}
    found = dict(models)
    for label, model in models.items():
        if model.config().get("tie_word_embeddings") is False:
            continue
        table = next((name for name in model.tensors if is_embedding(name)), None)
        missing = heads - model.tensors.keys()
        if table is None or not missing:
            continue
        known = dict(model.tensors)
        for head in missing:
            known[head] = replace(model.tensors[table], name=head)
            lent[Source(label, head)] = Source(label, table)
        found[label] = replace(model, tensors=known)
    return found, lent
