"""Git Re-Basin: aligns the units of experts, then averages them."""

import jax

from fusion_jax import trees
from fusion_jax.merging.linear import weighted_average
from fusion_jax.merging.permutation import PermutationSpec, match, on_host, permute
from fusion_jax.merging.record import Merge
from fusion_jax.types import Coefficients, Key, Params, ParamStack


def git_rebasin(
    stack: ParamStack,
    coefficients: Coefficients,
    *,
    spec: PermutationSpec,
    base: Params | None = None,
    key: Key | None = None,
    groups: trees.Rules[int] | None = None,
) -> Params:
    """Weighted average of experts whose units were brought into one order.

    p_k = argmax over permutations p  <theta_1, p(theta_k)>,  p_1 the identity
    theta = sum_k c_k p_k(theta_k)

    For experts that were trained from different initialisations: those of one base are
    aligned already. The alignment is solved on the host, so the stack cannot be traced;
    coefficients can.

    Args:
      stack: tree of [K, ...]; the first expert gives the order.
      coefficients: [K], [G, K] with `groups`, or a tree of [K].
      spec: leaf name -> name of the permutation of each axis or None; see
        `permutation.PermutationSpec` for heads and residual streams.
      base: not used.
      key: draws the order of the search; that of the spec without one.
      groups: ordered (regular expression, row of coefficients) rules.

    Returns:
      Tree of [...], dtypes of `stack`; sums in float32.

    Raises:
      ValueError: the spec does not fit the leaves, or the coefficients the stack.
      TypeError: the stack is traced.

    Reference: Ainsworth et al. 2023, arXiv:2209.04836.
    """
    del base
    models = on_host(stack)
    first, *rest = (
        jax.tree.map(lambda x, k=k: x[k], models)
        for k in range(trees.stack_size(models))
    )
    aligned = [first]
    for k, other in enumerate(rest):
        own = None if key is None else jax.random.fold_in(key, k)
        aligned.append(permute(spec, match(spec, first, other, key=own), other))
    return weighted_average(trees.stack(aligned), coefficients, groups=groups)


RECORDS: dict[str, Merge] = {
    "git_rebasin": Merge(
        function=git_rebasin,
        accepts=frozenset({"key"}),
        promises=frozenset({"equal_experts"}),
        leafwise=False,
        differentiable=False,
        reference="Ainsworth et al. 2023, arXiv:2209.04836",
    ),
}
