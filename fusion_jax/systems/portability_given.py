"""Modules of a study that exist already, held against the origin they stand for."""

import warnings

import jax

from fusion_jax import trees
from fusion_jax.checkpoints.huggingface import hash_params
from fusion_jax.checkpoints.module_folder import read_module
from fusion_jax.peft.module import Module, init_module
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
      CheckpointError: no module there, a pickle, or leaves that do not fit the origin's
        host; all are listed.
      ValueError: it is of another config than the technique, or, with `strict_host`, of
        another host.

    Warns:
      UserWarning: it is of another host.
    """
    technique, host, task, seed = origin
    peft = peft_config(setting.config, technique)
    whole = setting.whole(host, task, seed)
    wanted = jax.eval_shape(
        lambda params: init_module(peft, params, jax.random.key(0)).params, whole
    )
    module = read_module(source, trees.flatten(wanted))
    differing = [
        f"{name}: {value!r} there, {peft.to_json()[name]!r} in the study"
        for name, value in module.config.to_json().items()
        if value != peft.to_json()[name]
    ]
    if differing:
        raise ValueError(
            f"modules: {source} is of another config than technique '{technique}': "
            + "; ".join(differing)
        )
    known, own = module.host.get("sha256"), setting.hosts[host].sha256
    if known != own:
        told = (
            f"modules: {source} was trained on {module.host.get('name', 'a host')} "
            f"({str(known)[:12]}), and '{host}' has other weights ({own[:12]})"
        )
        if setting.config.strict_host:
            raise ValueError(f"{told}; take the module's own host")
        warnings.warn(told, stacklevel=2)
    return module, hash_params(module.params)
