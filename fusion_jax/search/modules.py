"""A search over modules: K of them on one host, whose weights all candidates read.

A candidate differs from the others in a gate of R numbers a layer, or in the small
leaves of its module; the host's kernels are not merged, copied or read once each: the
tokens of a whole chunk of candidates [P x B x T, D] go through a kernel in one product.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from fusion_jax import trees
from fusion_jax.merging import weighted_average
from fusion_jax.peft import Module, PeftConfig, module_leaves
from fusion_jax.peft.gates import gated
from fusion_jax.search.points import Points, check_finite
from fusion_jax.types import Params

RULES = ("exact", "leaves")


def module_points(
    host: Params,
    modules: Mapping[str, Module],
    *,
    rule: str = "exact",
    groups: Sequence[tuple[str, int]] = ((".*", 0),),
) -> tuple[PeftConfig, Points]:
    """Modules as the points of a search.

    Args:
      host: tree of the host, which every module was trained on.
      modules: name -> module.
      rule: 'exact' interpolates updates, sum_k c_k s_k a_k b_k (low-rank modules; ranks
        and scalings may differ); 'leaves' interpolates every leaf as it is, the only
        meaning of weights for the other kinds and LoraHub's for low-rank ones, where
        (sum c a)(sum c b) has the cross terms c_j c_k a_j b_k.
      groups: ordered (regular expression, group) rules over the modules' leaves;
        layers, for instance.

    Returns:
      (config, points): candidates are evaluated by
      `make_population(attach(model, config), ..., points, ...)`. What a module replaces
      of the host (its head, say) is interpolated with it.

    Raises:
      ValueError: an unknown rule, modules that differ in what they interpolate, values
        that are not finite, or, by the exact rule, what `peft.gates.gated` refuses.

    Reference: LoraHub: Huang et al. 2023, arXiv 2307.13269 (rule 'leaves').
    """
    if rule not in RULES:
        raise ValueError(f"rule: '{rule}' is not one of {', '.join(RULES)}")
    if not modules:
        raise ValueError("modules: none given; a search needs at least one")
    check_finite({name: module.params for name, module in modules.items()})
    if rule == "exact":
        config, factors, gates = gated(modules)
        kept = [_without_factors(module) for module in modules.values()]
        own = [trees.combine(a, b) for a, b in zip(gates, kept, strict=True)]
    else:
        config, factors = _one_config(modules), {}
        own = [module.params for module in modules.values()]
    names = tuple(modules)
    trees.check_same_structure(own, names)
    stack = trees.stack(own, names)
    trees.match_rules(groups, trees.flatten(stack), what="groups")
    # A leaf that the modules replace stands in the stack alone.
    replaced = trees.flatten(stack).keys()
    rest = {n: x for n, x in trees.flatten(host).items() if n not in replaced}
    shared = trees.combine(trees.unflatten(rest), factors)
    rules = tuple((pattern, group) for pattern, group in groups)
    return config, Points(names, stack, shared, rules)


def module_of(
    config: PeftConfig, points: Points, coefficients: jax.Array, host: Mapping
) -> Module:
    """The module of one candidate.

    By the exact rule it has the rank of all together and its weights in gates;
    `peft.merge_into` and `attach` take it as it is.

    Args:
      config: of `module_points`.
      points: likewise.
      coefficients: [G, K].
      host: what is known of the host, for the module's record.
    """
    weights = jnp.asarray(coefficients, jnp.float32)
    own = weighted_average(points.stack, weights, groups=points.groups)
    factors = trees.partition(points.shared, module_leaves(config))[0]
    return Module(config, trees.combine(factors, own), dict(host))


def _without_factors(module: Module) -> Params:
    """What the module replaces of the host: all of its leaves but the low-rank ones."""
    return trees.partition(module.params, r".*/lora/[a-z]+")[1]


def _one_config(modules: Mapping[str, Module]) -> PeftConfig:
    configs = {name: module.config for name, module in modules.items()}
    first, config = next(iter(configs.items()))
    differing = [name for name, other in configs.items() if other != config]
    if differing:
        raise ValueError(
            f"modules {', '.join(differing)} have another config than {first}: leaves "
            "of different kinds, sizes or scalings have no common average; take rule "
            "'exact' for low-rank modules"
        )
    return config
