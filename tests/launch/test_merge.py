import json
import os
import subprocess
import sys
from pathlib import Path

from tests.checkpoints.folders import tensors_of, write_folder

ROOT = Path(__file__).resolve().parents[2]


def launch(*arguments):
    return subprocess.run(
        [sys.executable, ROOT / "launch" / "merge.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    )


def test_the_script_merges_what_its_flags_say(tmp_path):
    for seed, name in enumerate(("origin", "a", "b")):
        write_folder(tmp_path / name, tensors_of(seed))
    flags = (
        "--method=ties",
        f"--base={tmp_path / 'origin'}",
        f"--models={tmp_path / 'a'},{tmp_path / 'b'}",
        "--weights=0.75,0.25",
        "--set=density=0.5",
        "--set=trim_scope=tensor",
        "--dtype=bfloat16",
        f"--out={tmp_path / 'out'}",
    )
    dry = launch(*flags, "--dry_run")
    assert dry.returncode == 0, dry.stderr
    assert "ties: a 0.75, b 0.25" in dry.stdout and not (tmp_path / "out").exists()
    done = launch(*flags)
    assert done.returncode == 0, done.stderr
    assert f"model: {tmp_path / 'out'}" in done.stdout
    record = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert record["tensors"]["scale"]["options"]["trim_scope"] == "tensor"
    assert record["out_dtype"] == "bfloat16"
    again = launch(*flags)
    assert again.returncode == 1 and "is there already" in again.stderr
    assert "Traceback" not in again.stderr


def test_the_script_runs_a_mergekit_file(tmp_path):
    for seed, name in enumerate(("a", "b")):
        write_folder(tmp_path / name, tensors_of(seed))
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(
        "merge_method: linear\nmodels: [{model: a}, {model: b}]\n"
        "parameters: {weight: 1}\n"
    )
    done = launch(f"--config={recipe}", f"--out={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "mergekit_config.yml").is_file()


def test_what_is_mistyped_ends_with_two(tmp_path):
    for arguments, said in (
        (("--metod=ties",), "Unknown command line flag 'metod'"),
        ((f"--config={tmp_path / 'no.yml'}",), "there is no file"),
        (("--method=ties",), "--models: no folder given"),
    ):
        done = launch(*arguments)
        assert done.returncode == 2 and said in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
