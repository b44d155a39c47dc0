"""fusion-jax peft show, import and export: a module's folder and its forms."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusion_jax.cli.peft_options import (
    add_host,
    add_out,
    check_out,
    need_host,
    read_host,
    read_module,
)
from fusion_jax.cli.printing import tell


def add_show(parser: argparse.ArgumentParser) -> None:
    """The options of show."""
    parser.add_argument("module", type=Path, metavar="MODULE", help="folder, any form")
    add_host(parser)


def show(options: argparse.Namespace) -> None:
    """Prints what a module is."""
    from fusion_jax.checkpoints.modules import form_of

    need_host(options)
    _, host = read_host(options)
    module = read_module(options, options.module, host)
    record = {"form": form_of(options.module), **_described(module)}
    tell(options, record, _text(record))


def add_import(parser: argparse.ArgumentParser) -> None:
    """The options of import."""
    parser.add_argument(
        "module", type=Path, metavar="DIR", help="folder of peft or AdapterHub"
    )
    parser.add_argument(
        "--ignore-key",
        action="append",
        default=[],
        metavar="KEY",
        help="key of adapter_config.json to pass over, where it changes nothing",
    )
    add_host(parser)
    add_out(parser)


def import_module(options: argparse.Namespace) -> None:
    """Reads another library's folder, and writes ours."""
    from fusion_jax.checkpoints.modules import form_of, save_module

    need_host(options)
    check_out(options)
    _, host = read_host(options)
    module = read_module(options, options.module, host, ignore=options.ignore_key)
    save_module(options.out, module)
    record = {"from": form_of(options.module), "out": str(options.out)}
    record |= _described(module)
    tell(options, record, f"{_text(record)}\nmodule: {options.out}")


def add_export(parser: argparse.ArgumentParser) -> None:
    """The options of export."""
    parser.add_argument("module", type=Path, metavar="MODULE", help="folder, any form")
    parser.add_argument(
        "--form", choices=("peft", "adapterhub", "fusion_jax"), default="peft"
    )
    parser.add_argument(
        "--bare",
        action="store_true",
        help="for a host that is loaded without a head (AutoModel)",
    )
    parser.add_argument(
        "--leave-out", metavar="REGEX", help="leaves not to write, such as 'head/.*'"
    )
    parser.add_argument("--base", help="what the files are to call the host")
    add_host(parser)
    add_out(parser)


def export_module(options: argparse.Namespace) -> None:
    """Writes a module in another library's form."""
    from fusion_jax.checkpoints.modules import save_module
    from fusion_jax.peft.combine_config import without

    need_host(options)
    check_out(options)
    _, host = read_host(options)
    module = read_module(options, options.module, host)
    if options.leave_out:
        module = without(module, options.leave_out)
    save_module(
        options.out,
        module,
        form=options.form,
        family=options.family,
        bare=options.bare,
        base=options.base,
    )
    record = {"form": options.form, "out": str(options.out), **_described(module)}
    tell(options, record, f"{_text(record)}\nmodule: {options.out}")


def _described(module: Any) -> dict[str, Any]:
    """What there is to say of a module, as JSON values."""
    import dataclasses

    from fusion_jax import trees
    from fusion_jax.peft.low_rank import own_leaves

    own, replaced = own_leaves(module)
    defaults = {f.name: f.default for f in dataclasses.fields(module.config)}
    settings = {
        name: value
        for name, value in module.config.to_json().items()
        if name == "kind" or getattr(module.config, name) != defaults[name]
    }
    layers = dict.fromkeys(
        name.split(f"/{module.config.kind}/")[0] for name in own if "/" in name
    )
    return {
        "config": settings,
        "host": dict(module.host),
        "layers": len(layers),
        "parameters": trees.num_params(module.params),
        "bytes": trees.num_bytes(module.params),
        "replaces": sorted(replaced),
    }


def _text(record: Mapping[str, Any]) -> str:
    config = dict(record["config"])
    host = record["host"]
    lines = [
        f"kind: {config.pop('kind')}",
        *(f"  {name}: {value}" for name, value in config.items()),
        f"host: {host.get('name', 'not known')}"
        + "".join(
            f", {name} {str(host[name])[:12]}"
            for name in ("family", "hidden_size", "num_layers", "sha256")
            if host.get(name)
        ),
        f"layers: {record['layers']}; parameters: {record['parameters']:,}",
    ]
    if record["replaces"]:
        lines.append(f"of the host's own: {', '.join(record['replaces'])}")
    return "\n".join(lines)
