"""fusion-jax repository contribute: one contribution, or one for each of many tasks."""

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from fusion_jax.cli.failures import WrongUsage
from fusion_jax.cli.printing import tell
from fusion_jax.cli.runs import names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The action's options."""
    add = parser.add_argument
    add("--data", required=True, metavar="DIR", help="the task's folder; stays here")
    add("--task", default="", help="name of the task; the folder's without it")
    add(
        "--tasks",
        type=names,
        metavar="A+B",
        help="several tasks below --data, each a contribution of its own",
    )
    add(
        "--backend",
        choices=("processes", "ray", "slurm", "kubernetes"),
        default="processes",
        help="with --tasks: run them here or on a Ray cluster, or print a batch file",
    )
    add("--workers", type=int, default=1, help="with --tasks: how many at once")
    add("--image", default="fusion-jax", help="with --backend=kubernetes")
    add("--contributor", default="", metavar="ID", help="who; the task's name without")
    add(
        "--model",
        metavar="DIR",
        help="hand in this model, fine-tuned from the newest base, instead of training",
    )
    add(
        "--recipe",
        metavar="FILE.json",
        help="options of the fine-tuning, for a group to agree on; --set goes over it",
    )
    add("--seed", type=int, default=0, help="of the head and the rows' order")
    add("--shots", type=int, default=0, help="training rows in all; 0 = all")
    add("--max-length", type=int, default=128, help="tokens of an input")
    add(
        "--statistics",
        choices=("gram", "fisher"),
        default="",
        help="hand these in, too, for rounds fused by regmean, mats or fisher",
    )
    add("--examples", type=int, default=1000, help="rows of the statistics")
    add("--licence", default="", help="of the data, where it may be told")
    add(
        "--workdir",
        default="runs/contributions",
        help="for the training's state and the model with its head",
    )
    add(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="an option of the fine-tuning (epochs, learning_rate, ...)",
    )


def run(options: argparse.Namespace) -> None:
    """Contributes, or has many contribute."""
    if options.tasks:
        _many(options)
        return
    from fusion_jax import runtime
    from fusion_jax.cli.configure import set_fields
    from fusion_jax.collaboration.repository import open_repository
    from fusion_jax.systems.contribution import contribute
    from fusion_jax.systems.defaults import SOURCE, fit_config
    from fusion_jax.training.config import FitConfig

    recipe = _recipe(options.recipe) if options.recipe else SOURCE
    fields: Any = fit_config(**recipe).lock()
    set_fields(fields, options.set)
    runtime.initialize()
    done = contribute(
        open_repository(options.url, cache=options.cache),
        options.data,
        task=options.task,
        contributor=options.contributor,
        fit=FitConfig(**{**fields.to_dict(), "seed": options.seed}),
        max_length=options.max_length,
        shots=options.shots,
        model=options.model,
        licence=options.licence,
        statistics=options.statistics,
        examples=options.examples,
        workdir=options.workdir,
    )
    manifest = done.manifest
    record = {
        "contributor": manifest.contributor,
        "task": manifest.task,
        "round": manifest.base.round,
        "run": manifest.run,
        "sha256": manifest.weights.sha256,
        "scores": dict(manifest.scores),
        "fresh": done.fresh,
        "model": None if done.model is None else str(done.model),
    }
    what = "contributed" if done.fresh else "had contributed already"
    lines = [
        f"{manifest.contributor} {what} {manifest.task} to base {manifest.base.round}: "
        f"{manifest.weights.sha256}"
    ]
    if done.model is not None:
        lines.append(f"model with its head, for yourself: {done.model}")
    tell(options, record, "\n".join(lines))


def _many(options: argparse.Namespace) -> None:
    """Each task as a job of its own, run here or printed for a scheduler."""
    from fusion_jax.collaboration.jobs import BACKENDS, Job, check
    from fusion_jax.collaboration.printed_jobs import PRINTED

    alone = [name for name in ("task", "contributor", "model") if vars(options)[name]]
    if alone:
        raise WrongUsage(
            f"--tasks goes without --{', --'.join(alone)}: each task is its own "
            "contributor"
        )
    jobs = [Job(task, _arguments(options, task)) for task in options.tasks]
    if options.backend in PRINTED:
        print(
            PRINTED[options.backend](
                jobs, workers=options.workers, image=options.image
            ),
            end="",
        )
        return
    outcomes = BACKENDS[options.backend](jobs, workers=options.workers)
    check(outcomes)
    records = [outcome.record for outcome in outcomes if outcome.record is not None]
    lines = [
        f"{r['contributor']} contributed to base {r['round']}: {r['sha256']}"
        for r in records
    ]
    tell(options, {"contributions": records}, "\n".join(lines))


def _arguments(options: argparse.Namespace, task: str) -> tuple[str, ...]:
    """What one of many contributors would type."""
    url = options.url if "://" in options.url else os.path.abspath(options.url)
    words = ["repository", "contribute", url, "--task", task]
    words += ["--data", os.path.abspath(options.data), "--seed", str(options.seed)]
    words += ["--shots", str(options.shots), "--max-length", str(options.max_length)]
    words += ["--workdir", os.path.abspath(options.workdir)]
    words += ["--cache", os.path.abspath(options.cache)] if options.cache else []
    words += ["--recipe", os.path.abspath(options.recipe)] if options.recipe else []
    words += ["--licence", options.licence] if options.licence else []
    if options.statistics:
        words += [
            "--statistics",
            options.statistics,
            "--examples",
            f"{options.examples}",
        ]
    for change in options.set:
        words += ["--set", change]
    return tuple(words)


def _recipe(file: str) -> dict[str, Any]:
    """The options of a fit in a JSON file; all that are unknown are named."""
    from fusion_jax.training.config import FitConfig

    known = [field.name for field in dataclasses.fields(FitConfig)]
    try:
        found = json.loads(Path(file).read_text())
    except ValueError as error:
        raise ValueError(f"--recipe: {file} is no JSON ({error})") from error
    unknown = sorted(set(found) - set(known)) if isinstance(found, dict) else []
    if unknown or not isinstance(found, dict):
        raise ValueError(
            f"--recipe: {file} holds {', '.join(unknown) or 'no object'}; options of a "
            f"fit are {', '.join(known)}"
        )
    return {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}
