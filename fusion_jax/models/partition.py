"""How the leaves of a model lie over the mesh axis 'model'."""

from jax.sharding import PartitionSpec

# Columns of the first product of a pair and rows of the second are split, so that
# one reduction a pair suffices (Shoeybi et al. 2019, arXiv 1909.08053).
PARTITION_RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r".*/attention/(query|key|value)/kernel", PartitionSpec(None, "model")),
    (r".*/attention/(query|key|value)/bias", PartitionSpec("model")),
    # GPT-2 packs query, key and value, so that a share of the columns is no share of
    # heads: the compiler regroups the products over the devices. Columns all the same:
    # of columns, rows and no split they exchange the fewest elements in a training
    # step, and parameters and optimizer state are split.
    (r".*/attention/qkv/kernel", PartitionSpec(None, "model")),
    (r".*/attention/qkv/bias", PartitionSpec("model")),
    (r".*/attention/output/kernel", PartitionSpec("model", None)),
    (r".*/mlp/up/kernel", PartitionSpec(None, "model")),
    (r".*/mlp/up/bias", PartitionSpec("model")),
    (r".*/mlp/down/kernel", PartitionSpec("model", None)),
    (r".*/embeddings/word/embedding", PartitionSpec(None, "model")),
    (r".*", PartitionSpec()),
)
