"""What is wrong with a task selection's config, before anything is read."""

from fusion_jax.config import Config
from fusion_jax.systems.clocks import CLOCKS
from fusion_jax.systems.selection_defaults import CONTROL, FUSION, PAIRS, order_of
from fusion_jax.systems.selection_measures import AVAILABLE, check_measures


def check_options(config: Config) -> None:
    """Raises ValueError with every option that makes no sense."""
    wrong = [
        f"{name}: {config[name]}; at least {least}"
        for name, least in (
            ("rows", 0),
            ("max_dev_rows", 0),
            ("max_test_rows", 0),
            ("few_shot", 0),
            ("budget", 0),
            ("texts", 2),
            ("max_length", 3),
        )
        if config[name] < least
    ]
    if not 0 < config.keep <= 1:
        wrong.append(f"keep: {config.keep}; a fraction above 0 and up to 1")
    if config.pairs not in PAIRS:
        wrong.append(f"pairs: '{config.pairs}' is not one of {', '.join(PAIRS)}")
    if config.clock not in CLOCKS:
        wrong.append(f"clock: '{config.clock}' is not one of {', '.join(CLOCKS)}")
    if len(set(config.tasks)) < len(config.tasks):
        wrong.append("tasks: a name is there twice")
    try:
        check_measures(config.measures)
    except ValueError as error:
        wrong.append(str(error))
    asked = dict.fromkeys(config.measures or AVAILABLE)
    fused = (FUSION,) if len(asked) > 1 else ()
    orders = tuple(dict.fromkeys((*asked, CONTROL, *fused)))
    if order_of(config) not in orders:
        wrong.append(f"order: '{config.order}' is not one of {', '.join(orders)}")
    if wrong:
        raise ValueError("\n".join(wrong))
