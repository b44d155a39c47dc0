"""The loop that divergences are timed beside gives what they give."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fusion_jax.transfer.table import MEASURES

ROOT = Path(__file__).resolve().parents[2]
SIZES = "--tasks 4 --texts 12 --width 6 --terms 40 --loop-pairs 4 --repeats 1"


@pytest.mark.slow
def test_both_sides_agree_on_every_measure():
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "scripts" / "bench" / "divergences.py",
            *("--synthetic", *SIZES.split(), "--growth", "3"),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    read = {name for name, measure in MEASURES.items() if measure.reads != "module"}
    grouped = [name for group in record["groups"] for name in group["measures"]]
    grown = [
        name for told in record["growth"]["3"]["measures"] for name in told.split(", ")
    ]
    assert set(record["measures"]) == set(grouped) == set(grown) == read
    assert len(grouped) == len(grown) == len(read)
    for name, one in record["measures"].items():
        assert one["difference"] < 1e-5 and not one["loop_not_finite"], name
        assert one["seconds"] > 0 and one["loop_seconds_a_pair"] > 0
    totals = record["totals"]
    assert totals["ratio"] > totals["ratio_that_knows_symmetry"] > 0
    assert "| bures |" in done.stderr and "| all, together |" in done.stderr
