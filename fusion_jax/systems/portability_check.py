"""What is wrong with a portability study's config and data, before any training."""

from fusion_jax.config import Config
from fusion_jax.peft.port import MAGNITUDES
from fusion_jax.peft.port_depth import DEPTHS
from fusion_jax.peft.port_table import PORTS
from fusion_jax.systems.dataless_check import different_labels
from fusion_jax.systems.portability_defaults import HEADS, INITS, WIDTHS
from fusion_jax.systems.portability_grid import (
    cells_of,
    combinations_of,
    origins_of,
    pairs_of,
)
from fusion_jax.systems.portability_setting import Setting, peft_config


def check_options(config: Config) -> None:
    """Raises ValueError with every option that makes no sense."""
    wrong = []
    for name, least in (
        ("seeds", 1),
        ("shots", 0),
        ("receiver_shots", 0),
        ("together", 0),
    ):
        if config[name] < least:
            wrong.append(f"{name}: {config[name]}; at least {least}")
    if len(config.hosts) < 1:
        wrong.append("hosts: none; name at least one, hosts.NAME = DIR")
    for name, value, choices in (
        ("head", config.head, HEADS),
        ("port.method", config.port.method, ("auto", *PORTS)),
        ("port.depth", config.port.depth, DEPTHS),
        ("port.width", config.port.width, WIDTHS),
        ("port.magnitude", config.port.magnitude, MAGNITUDES),
    ):
        if value not in choices:
            wrong.append(f"{name}: '{value}' is not one of {', '.join(choices)}")
    unknown = [name for name in config.inits if name not in INITS]
    if unknown or not config.inits:
        wrong.append(
            f"inits: {', '.join(unknown) or 'none'}; there are {', '.join(INITS)}"
        )
    steps = list(config.steps)
    if not steps or any(
        isinstance(step, bool) or not isinstance(step, int) or step < 0
        for step in steps
    ):
        wrong.append(f"steps: {steps or 'none'}; give whole numbers from 0 on")
    if config.receive.schedule != "constant" or config.receive.warmup_fraction:
        wrong.append(
            "receive: a schedule or warm-up makes k steps depend on how many follow; "
            "set schedule to 'constant' and warmup_fraction to 0"
        )
    wrong += _techniques(config) + _made(config) + _arrows(config)
    if wrong:
        raise ValueError("\n".join(wrong))


def check_study(setting: Setting) -> None:
    """Raises ValueError with every task and given module that cannot take part."""
    config = setting.config
    tasks = list(setting.receivers.values())
    wrong = different_labels(tasks) if tasks else ["tasks: none"]
    combinations = combinations_of(config, tuple(setting.receivers))
    for _, name in combinations:
        if "test" not in setting.receivers[name].splits:
            wrong.append(f"{name}: no test split to test on")
    for origin, receiver in () if wrong else combinations:
        try:
            setting.unseen(origin, receiver)
        except ValueError as error:
            wrong.append(str(error))
    known = [
        origin.name for origin in origins_of(cells_of(config, tuple(setting.receivers)))
    ]
    for text in config.modules:
        name, equals, _ = text.partition("=")
        if not equals:
            wrong.append(f"modules: '{text}': write TECHNIQUE:HOST:TASK:SEED=DIR")
        elif name not in known:
            wrong.append(
                f"modules: '{name}' is no origin of the grid; there are "
                f"{', '.join(known[:12])}{' ...' if len(known) > 12 else ''}"
            )
    if wrong:
        raise ValueError("portability:\n  " + "\n  ".join(dict.fromkeys(wrong)))


def _techniques(config: Config) -> list[str]:
    if not len(config.techniques):
        return ["techniques: none; name at least one"]
    wrong = []
    for name in config.techniques:
        options = config.techniques[name]
        lost = {"peft", "learning_rate"} - set(options)
        if lost:
            wrong.append(f"techniques.{name}: {', '.join(sorted(lost))} is missing")
            continue
        if not options.learning_rate > 0:
            wrong.append(f"techniques.{name}.learning_rate: not above 0")
        try:
            peft = peft_config(config, name)
        except ValueError as error:
            wrong.append(f"techniques.{name}: {error}")
            continue
        if peft.mlp_width:
            wrong.append(
                f"techniques.{name}: a prefix leaves its network behind, so receivers "
                "could not go on as the origin began; set mlp_width to 0"
            )
        if peft.init == "pissa":
            wrong.append(
                f"techniques.{name}: init 'pissa' changes the host it starts from, and "
                "the runs of a study share theirs; choose another init"
            )
    return wrong


def _made(config: Config) -> list[str]:
    wrong = []
    for name in config.made:
        options = config.made[name]
        lost = sorted({"base", "layers", "tasks"} - set(options))
        if lost:
            wrong.append(f"made.{name}: {', '.join(lost)} is missing")
        elif options["base"] not in config.hosts:
            wrong.append(
                f"made.{name}.base: '{options['base']}' is not among the hosts "
                f"({', '.join(config.hosts)})"
            )
        if name in config.hosts:
            wrong.append(f"made.{name}: hosts has one of this name too")
    return wrong


def _arrows(config: Config) -> list[str]:
    wrong = []
    if len(config.hosts):
        try:
            if not pairs_of(config):
                wrong.append(
                    "pairs: none; name a second host, or the pair of a host with itself"
                )
        except ValueError as error:
            wrong.append(str(error))
    if config.tasks:
        try:
            combinations_of(config, tuple(config.tasks))
        except ValueError as error:
            wrong.append(str(error))
    return wrong
