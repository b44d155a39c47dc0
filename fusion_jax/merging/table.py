"""The table of merges: tests sweep it, commands look names up in it."""

from fusion_jax.merging.linear import task_arithmetic, weighted_average, wise_ft
from fusion_jax.merging.record import Merge

MERGES: dict[str, Merge] = {
    "weighted_average": Merge(
        function=weighted_average,
        needs=frozenset(),
        leafwise=True,
        promises=frozenset({"one_hot", "equal_experts", "permutation"}),
        differentiable=True,
        reference="Wortsman et al. 2022, arXiv:2203.05482",
    ),
    "task_arithmetic": Merge(
        function=task_arithmetic,
        needs=frozenset({"base"}),
        leafwise=True,
        promises=frozenset({"one_hot", "equal_experts", "permutation", "base_at_zero"}),
        differentiable=True,
        reference="Ilharco et al. 2023, arXiv:2212.04089",
    ),
    "wise_ft": Merge(
        function=wise_ft,
        needs=frozenset({"base"}),
        leafwise=True,
        promises=frozenset({"one_hot", "base_at_zero"}),
        differentiable=True,
        reference="Wortsman et al. 2021, arXiv:2109.01903",
    ),
}
