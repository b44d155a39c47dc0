"""Linear merges: weighted average, task arithmetic, WiSE-FT interpolation."""

import jax
import jax.numpy as jnp

from fusion_jax import trees
from fusion_jax.merging.combine import contract
from fusion_jax.merging.form import Block, Facts, Form, Options
from fusion_jax.merging.in_memory import require_base, run
from fusion_jax.merging.record import Merge
from fusion_jax.types import Coefficients, Key, Params, ParamStack


def weighted_average(
    stack: ParamStack,
    coefficients: Coefficients,
    *,
    base: Params | None = None,
    key: Key | None = None,
    groups: trees.Rules[int] | None = None,
    normalize: bool = False,
) -> Params:
    """Weighted average of experts, with the weights as they are given.

    theta = sum_k c_k theta_k

    Args:
      stack: tree of [K, ...]; float leaves of any dtype.
      coefficients: [K], [G, K] with `groups`, or a tree of [K].
      base: not used.
      key: not used.
      groups: ordered (regular expression, row of coefficients) rules.
      normalize: divide by sum_k c_k, which must not be zero.

    Returns:
      Tree of [...], dtypes of `stack`; sums in float32. Leaves that are not floating
      are those of the first expert.

    Raises:
      ValueError: the coefficients do not fit the stack.

    Reference: Wortsman et al. 2022, arXiv:2203.05482 (uniform weights).
    """
    del base, key
    return run(average_form(normalize=normalize), stack, coefficients, groups=groups)


def task_arithmetic(
    stack: ParamStack,
    coefficients: Coefficients,
    *,
    base: Params | None = None,
    key: Key | None = None,
    groups: trees.Rules[int] | None = None,
    scale: jax.Array | float = 1.0,
    normalize: bool = False,
) -> Params:
    """Adds scaled task vectors to the pretrained model.

    theta = theta_0 + scale * sum_k c_k (theta_k - theta_0)

    Args:
      stack: tree of [K, ...].
      coefficients: [K], [G, K] with `groups`, or a tree of [K]; any sign and sum.
      base: tree of [...], the pretrained model.
      key: not used.
      groups: ordered (regular expression, row of coefficients) rules.
      scale: lambda, of the summed task vector.
      normalize: divide the sum by sum_k c_k.

    Returns:
      Tree of [...], dtypes of `stack`; computed in float32 from differences, so that
      small task vectors keep their digits.

    Raises:
      ValueError: no base, or coefficients that do not fit.
      TreeMismatch: the base has another structure than the experts.

    Reference: Ilharco et al. 2023, arXiv:2212.04089.
    """
    del key
    return run(
        task_arithmetic_form(normalize=normalize),
        stack,
        coefficients,
        base=require_base(base, "task_arithmetic"),
        groups=groups,
        options={"scale": scale},
    )


def wise_ft(
    stack: ParamStack,
    coefficients: Coefficients,
    *,
    base: Params | None = None,
    key: Key | None = None,
    groups: trees.Rules[int] | None = None,
) -> Params:
    """Straight line between the pretrained model and one fine-tuned model.

    theta = (1 - c) theta_0 + c theta_1

    Args:
      stack: tree of [1, ...], the fine-tuned model.
      coefficients: [1], [G, 1] with `groups`, or a tree of [1]; 0 is the base.
      base: tree of [...], the pretrained model.
      key: not used.
      groups: ordered (regular expression, row of coefficients) rules.

    Returns:
      Tree of [...], dtypes of `stack`, computed in float32; exact at 0 and 1.

    Raises:
      ValueError: more than one expert, no base, or coefficients that do not fit.

    Reference: Wortsman et al. 2021, arXiv:2109.01903.
    """
    del key
    base = require_base(base, "wise_ft")
    return run(wise_ft_form(), stack, coefficients, base=base, groups=groups)


def average_form(*, normalize: bool = False) -> Form:
    """The form of `weighted_average`."""

    def apply(block: Block, facts: Facts, options: Options) -> jax.Array:
        del facts, options
        row = block.coefficients
        return contract(row / jnp.sum(row) if normalize else row, block.experts)

    return Form(apply)


def task_arithmetic_form(*, normalize: bool = False) -> Form:
    """The form of `task_arithmetic`."""

    def apply(block: Block, facts: Facts, options: Options) -> jax.Array:
        del facts
        assert block.base is not None
        row = block.coefficients
        row = options["scale"] * (row / jnp.sum(row) if normalize else row)
        return block.base + contract(row, block.deltas)

    return Form(apply)


def wise_ft_form() -> Form:
    """The form of `wise_ft`."""

    def apply(block: Block, facts: Facts, options: Options) -> jax.Array:
        del facts, options
        assert block.base is not None
        if len(block.experts) != 1:
            raise ValueError(
                f"wise_ft: {len(block.experts)} experts given, takes one; use "
                "task_arithmetic for several"
            )
        alpha = block.coefficients[0]
        return (1 - alpha) * block.base + alpha * block.experts[0]

    return Form(apply)


RECORDS: dict[str, Merge] = {
    "weighted_average": Merge(
        function=weighted_average,
        form=average_form,
        promises=frozenset({"one_hot", "equal_experts", "permutation", "shift"}),
        reference="Wortsman et al. 2022, arXiv:2203.05482",
    ),
    "task_arithmetic": Merge(
        function=task_arithmetic,
        form=task_arithmetic_form,
        needs=frozenset({"base"}),
        promises=frozenset(
            {"one_hot", "equal_experts", "permutation", "base_at_zero", "shift"}
        ),
        reference="Ilharco et al. 2023, arXiv:2212.04089",
    ),
    "wise_ft": Merge(
        function=wise_ft,
        form=wise_ft_form,
        needs=frozenset({"base"}),
        promises=frozenset({"one_hot", "base_at_zero", "shift"}),
        experts=(1, 1),
        reference="Wortsman et al. 2021, arXiv:2109.01903",
    ),
}
