"""The table of merges: tests sweep it, commands look names up in it."""

from fusion_jax.merging import linear, ties
from fusion_jax.merging.record import Merge

MERGES: dict[str, Merge] = {
    **linear.RECORDS,
    **ties.RECORDS,
}
