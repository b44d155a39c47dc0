"""How the leaves of a model lie over the mesh axis 'model'."""

from jax.sharding import PartitionSpec

# Columns of the first product of a pair and rows of the second are split, so that
# one reduction a pair suffices (Shoeybi et al. 2019, arXiv 1909.08053).
PARTITION_RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r".*/attention/(query|key|value)/kernel", PartitionSpec(None, "model")),
    (r".*/attention/(query|key|value)/bias", PartitionSpec("model")),
    (r".*/attention/output/kernel", PartitionSpec("model", None)),
    (r".*/mlp/up/kernel", PartitionSpec(None, "model")),
    (r".*/mlp/up/bias", PartitionSpec("model")),
    (r".*/mlp/down/kernel", PartitionSpec("model", None)),
    (r".*/embeddings/word/embedding", PartitionSpec(None, "model")),
    (r".*", PartitionSpec()),
)
