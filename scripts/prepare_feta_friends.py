"""Builds the seven FETA-Friends tasks from the raw public files.

    python scripts/prepare_feta_friends.py --raw DIR --out DIR

DIR of --raw holds the source repositories, each as a folder named
`<owner>__<repository>` or as `<owner>__<repository>.tar.gz` of such a folder.
Written are OUT/full/<task>, OUT/few_shot/<task>, OUT/feta_friends_splits.json and
OUT/build.json. A file that is missing is named; the tasks that the others allow are
built. Exit code 0 if at least one task was built, 1 if none.
"""

import argparse
import sys
from pathlib import Path

from fusion_jax.data.feta.build import MODES, build_tasks, write_built
from fusion_jax.data.feta.tasks import FETA_TASKS, rows_table


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument(
        "--raw",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the source repositories or their archives",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder to write the tasks to",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="draws friends_relation's few-shot dialogues where its "
        "scenes are unknown (default 0)",
    )
    options = parser.parse_args(arguments)
    try:
        built = build_tasks(options.raw, seed=options.seed)
        if any(built.tasks.values()):
            write_built(built, options.out)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if built.missing:
        print("missing:\n  " + "\n  ".join(built.missing))
    order = "exact" if built.order.exact else "rebuilt"
    print(
        f"scene order: {order}, {built.order.uncertain} of {len(built.order.order)} "
        "positions uncertain"
    )
    for name, count in built.unassigned.items():
        if count:
            print(
                f"{name}: {count} of {built.rows[name]} rows left out, their scene "
                "is unknown or has no certain place"
            )
    for mode, few_shot in MODES.items():
        print(f"\n{mode}\n{rows_table(built.tasks[mode], few_shot=few_shot)}")
    absent = [name for name in FETA_TASKS if name not in built.tasks["full"]]
    if absent:
        print(f"\nnot built: {', '.join(absent)}")
    if not any(built.tasks.values()):
        print("error: nothing could be built", file=sys.stderr)
        return 1
    print(f"\nwritten to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
