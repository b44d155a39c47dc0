"""Fills the Slurm and GKE templates beside this file and submits the job.

python launch/cluster.py slurm --name dfwe --nodes 2 --gpus 8 --time 04:00:00 \
    dfwe --config=configs/dfwe/friends.py:data=DIR --workdir=DIR
python launch/cluster.py gke --name dfwe --image IMAGE --topology 4x4 --claim runs \
    dfwe --config=configs/dfwe/friends.py:data=/runs/tasks --workdir=/runs/friends

`--dry-run` prints the command and the file, and submits nothing. Needs only Python's
standard library: it runs where the cluster's own commands are, without the package.
"""

import argparse
import json
import math
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

LAUNCH = Path(__file__).resolve().parent
ROOT = LAUNCH.parent
# Job names become DNS names and lines of a batch file.
NAME = r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?"
TIME = r"(\d+-)?\d+(:\d\d){0,2}"
WORD = r"[A-Za-z0-9][-A-Za-z0-9_.:/@]*"


def fill(template: str, values: Mapping[str, object]) -> str:
    """Returns the template with each `@KEY@` replaced by `values[KEY]`.

    Raises:
      ValueError: a key of the template has no value, or a value has no place in it.
    """
    places = set(re.findall(r"@([A-Z]+)@", template))
    if places != set(values):
        raise ValueError(
            f"the template wants {sorted(places - set(values))} that have no value, "
            f"and has no place for {sorted(set(values) - places)}"
        )
    return re.sub(r"@([A-Z]+)@", lambda key: str(values[key[1]]), template)


def launch_script(name: str) -> str:
    """Returns the path of a launch script from the checkout's root."""
    if not (LAUNCH / f"{name}.py").is_file():
        raise argparse.ArgumentTypeError(f"there is no launch/{name}.py")
    return f"launch/{name}.py"


def matching(pattern: str, example: str):
    """Returns an argparse type that takes text of one form only."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise argparse.ArgumentTypeError(f"{text!r} is not of the form {example}")
        return text

    return check


def positive(text: str) -> int:
    """Returns a number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


def slurm(options: argparse.Namespace) -> tuple[str, list[str]]:
    """Returns the batch file and the words of the command that submits it."""
    program = [".venv/bin/python", options.script, *options.arguments]
    text = fill(
        (LAUNCH / "slurm.sbatch").read_text(encoding="utf-8"),
        {
            "NAME": options.name,
            "NODES": options.nodes,
            "GPUS": options.gpus,
            "CPUS": options.cpus,
            "TIME": options.time,
            "ROOT": shlex.quote(str(ROOT)),
            "COMMAND": shlex.join(program),
        },
    )
    return text, ["sbatch", *options.sbatch]


def gke(options: argparse.Namespace) -> tuple[str, list[str]]:
    """Returns the JobSet and the words of the command that submits it.

    One pod runs on each host: hosts = chips of the topology / chips of a host.
    """
    chips = math.prod(int(side) for side in options.topology.split("x"))
    hosts, rest = divmod(chips, options.chips)
    if rest or not hosts:
        raise SystemExit(
            f"cluster.py: topology {options.topology} has {chips} chips, which is no "
            f"multiple of {options.chips} a host: set --chips"
        )
    # bash hands its own arguments on, so they need no second quoting.
    program = ["bash", "-c", '. launch/env/tpu.sh && exec python "$@"', "fusion_jax"]
    program += [options.script, *options.arguments]
    values = {
        "NAME": options.name,
        "NAMESPACE": options.namespace,
        "HOSTS": hosts,
        "CHIPS": options.chips,
        "ACCELERATOR": options.accelerator,
        "TOPOLOGY": options.topology,
        "IMAGE": options.image,
        "CLAIM": options.claim,
        # Kubernetes would put in the variable of each $(NAME); $$ is its plain dollar.
        "COMMAND": [word.replace("$(", "$$(") for word in program],
    }
    # What is JSON is YAML too, and JSON quotes whatever an argument holds.
    text = fill(
        (LAUNCH / "gke_jobset.yaml").read_text(encoding="utf-8"),
        {key: json.dumps(value) for key, value in values.items()},
    )
    return text, ["kubectl", "apply", "--filename"]


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the two commands."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--name", required=True, type=matching(NAME, "my-job-1"))
    common.add_argument("--dry-run", action="store_true", help="print, submit nothing")
    common.add_argument("script", type=launch_script, help="a script of launch/: dfwe")
    common.add_argument("arguments", nargs=argparse.REMAINDER, help="its arguments")

    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = result.add_subparsers(required=True, metavar="slurm|gke")
    on_slurm = commands.add_parser("slurm", parents=[common], help="a Slurm cluster")
    on_slurm.set_defaults(make=slurm, suffix=".sbatch")
    on_slurm.add_argument("--nodes", type=positive, default=1)
    on_slurm.add_argument("--gpus", type=positive, default=1, help="of each node")
    on_slurm.add_argument("--cpus", type=positive, default=8, help="of each process")
    on_slurm.add_argument(
        "--time", type=matching(TIME, "D-HH:MM:SS or HH:MM:SS"), default="04:00:00"
    )
    on_slurm.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="handed to sbatch, such as --sbatch=--partition=gpu; may be repeated",
    )
    on_gke = commands.add_parser("gke", parents=[common], help="TPUs on GKE")
    on_gke.set_defaults(make=gke, suffix=".yaml")
    word = matching(WORD, "letters, digits and -_.:/@")
    on_gke.add_argument("--image", required=True, type=word)
    on_gke.add_argument(
        "--topology", required=True, type=matching(r"[1-9]\d*(x[1-9]\d*){1,2}", "4x4")
    )
    on_gke.add_argument("--accelerator", type=word, default="tpu-v5-lite-podslice")
    on_gke.add_argument("--chips", type=positive, default=4, help="of each host")
    on_gke.add_argument(
        "--claim", required=True, type=word, help="volume claim mounted at /runs"
    )
    on_gke.add_argument("--namespace", type=word, default="default")
    return result


def main(arguments: Sequence[str]) -> int:
    """Fills one template; prints it or submits it. Returns the exit code."""
    options = parser().parse_args(arguments)
    text, command = options.make(options)
    path = Path(".cache", "launch", options.name + options.suffix)
    command = [*command, str(path)]
    if options.dry_run:
        print(f"cd {shlex.quote(str(ROOT))} && {shlex.join(command)}")
        print(f"# {path}:\n{text}", end="")
        return 0
    if shutil.which(command[0]) is None:
        print(
            f"cluster.py: {command[0]} is not installed here; --dry-run prints what it "
            "would be asked",
            file=sys.stderr,
        )
        return 1
    # Slurm drops the output of a job whose log folder is not there.
    for folder in (ROOT / path.parent, ROOT / "runs" / "slurm"):
        folder.mkdir(parents=True, exist_ok=True)
    (ROOT / path).write_text(text, encoding="utf-8")
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
