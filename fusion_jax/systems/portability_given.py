"""Modules of a study that exist already, held against the origin they stand for."""

from fusion_jax.checkpoints.huggingface import hash_params
from fusion_jax.checkpoints.module_file import host_hash, load_module
from fusion_jax.peft.module import Module
from fusion_jax.systems.portability_grid import Origin
from fusion_jax.systems.portability_setting import Setting, peft_config


def given_module(setting: Setting, origin: Origin, source: str) -> tuple[Module, str]:
    """A module that exists, in the place of one that would be trained.

    Args:
      setting: of the study; with `strict_host` another host than the module's own is
        an error.
      origin: what it stands for.
      source: folder of a module.

    Returns:
      (the module, hash of its leaves).

    Raises:
      FileNotFoundError: there is no such folder.
      CheckpointError: no module there, a pickle, leaves that do not fit the origin's
        host (all are listed), or, with `strict_host`, another host.
      ValueError: it is of another config than the technique.

    Warns:
      OtherHost: it is of another host.
    """
    technique, host, task, seed = origin
    peft = peft_config(setting.config, technique)
    module = load_module(
        source,
        host=setting.whole(host, task, seed),
        strict_host=setting.config.strict_host,
        made_for=host_hash(setting.hosts[host].params),
    )
    wanted = peft.to_json()
    differing = [
        f"{name}: {value!r} there, {wanted[name]!r} in the study"
        for name, value in module.config.to_json().items()
        if value != wanted[name]
    ]
    if differing:
        raise ValueError(
            f"modules: {source} is of another config than technique '{technique}': "
            + "; ".join(differing)
        )
    return module, hash_params(module.params)
