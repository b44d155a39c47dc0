"""Bad input as a user meets it: one message that names the thing and the way out."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.checkpoints.tensors import read_file, write_file
from fusion_jax.cli.main import main
from fusion_jax.models import build_model
from tests.small_models import LABELS, sentences, write_model, write_task

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("search.budget=24", "plane=0", "comparators=")

# A file that grows beyond the limit fails as on a full disk.
LIMITED = """
import resource, runpy, sys
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An encoder, two experts of it, and a task."""
    root = tmp_path_factory.mktemp("input")
    write_model(root / "encoder")
    for seed in range(2):
        write_model(
            root / f"expert_{seed}", kind="single_label", labels=LABELS, seed=seed
        )
    write_task(root / "tasks" / "film")
    return root


@pytest.fixture
def refused(place, tmp_path, capsys):
    """Runs `fusion-jax dfwe`, which fails: what it says. Nothing is left behind."""

    def run(*arguments, data=place / "tasks", experts=("expert_0", "expert_1"), code=1):
        workdir = tmp_path / "run"
        capsys.readouterr()
        given = [
            *("dfwe", "--data", data, "--target", "film", "--workdir", workdir),
            *("--encoder", place / "encoder", "--max-length", 16),
            *("--experts", "+".join(str(place / name) for name in experts)),
            *(word for field in SMALL for word in ("--set", field)),
            *arguments,
        ]
        assert main([str(word) for word in given]) == code
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.count("error:") == 1 and "Traceback" not in said.err
        assert not results_in(workdir)
        return said.err

    return run


def results_in(workdir):
    """Whatever could be taken for a result, and halves of files."""
    forms = ("results.json", "report.html", "model", ".*", "*.partial", "*.new*")
    return [path for form in forms for path in workdir.rglob(form)]


CACHES = ("JAX_CACHE_DIR", "JAX_COMPILATION_CACHE_DIR")


def launch(*arguments, limit=2**40):
    """Runs launch/dfwe.py as a process whose files grow to `limit` bytes at most."""
    script = ROOT / "launch" / "dfwe.py"
    # A compile cache on the full disk is warned of too, which is not what is counted.
    kept = {k: v for k, v in os.environ.items() if not k.endswith(CACHES)}
    return subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit), script, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**kept, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    )


def local(place, workdir, *options, data="tasks"):
    """Arguments of a small run that begins with experts or with training."""
    words = [f"data={place / data}", "target=film", f"encoder={place / 'encoder'}"]
    config = ",".join([*words, "max_length=16", *options])
    return [
        f"--config={ROOT}/configs/dfwe/local.py:{config}",
        f"--workdir={workdir}",
        "--config.search.budget=24",
        "--config.plane=0",
        "--config.comparators=()",
    ]


def experts_of(place, *names):
    return "experts=" + "+".join(str(place / name) for name in names)


def test_an_expert_of_another_structure_is_named_with_its_leaves(place, refused):
    config = hf.load(place / "encoder").config
    deeper = config.__class__(
        **{**vars(config), "num_layers": 3, "intermediate_size": 24}
    )
    params = build_model(deeper, "single_label", 2).init(jax.random.key(0))
    hf.save(place / "deep", params, deeper, kind="single_label", labels=LABELS)
    said = refused(experts=("expert_0", "deep"))
    assert f"{place / 'deep'} is no fine-tune of the encoder" in said
    assert "encoder/layer_0/mlp/up/kernel: (16, 24) there, (16, 16) expected" in said
    assert "encoder/layer_2/" in said and "Set encoder" in said


def test_experts_of_another_encoder_than_the_config_s_are_not_cut_to_it(place, refused):
    config = hf.load(place / "encoder").config
    shallow = config.__class__(**{**vars(config), "num_layers": 1})
    params = dict(build_model(shallow, "single_label", 2).init(jax.random.key(0)))
    del params["head"]
    words = place / "words"
    hf.save(place / "shallow", params, shallow, kind=None, tokenizer_from=words)
    said = refused("--encoder", place / "shallow")
    assert "expert_0" in said and str(place / "shallow") in said
    assert "encoder/layer_1/attention/key/bias: (16,) there, absent expected" in said


def test_an_unknown_label_names_file_row_and_label(refused, tmp_path):
    rows = [*sentences(3), {"text": "the film", "label": "neutral"}]
    write_task(tmp_path / "tasks" / "film", dev=rows)
    said = refused(data=tmp_path / "tasks")
    assert "dev.jsonl:4: unknown label 'neutral'" in said
    assert "labels.json has negative, positive" in said and "label_map" in said


def test_an_empty_split_names_the_file(refused, tmp_path):
    write_task(tmp_path / "tasks" / "film", test=False)
    (tmp_path / "tasks" / "film" / "test.jsonl").touch()
    said = refused(data=tmp_path / "tasks")
    assert str(tmp_path / "tasks" / "film") in said
    assert "test.jsonl is empty; fill it, or remove it" in said


def test_weights_that_are_not_finite_name_folder_leaf_and_count(place, refused):
    damaged = write_model(place / "nan", kind="single_label", labels=LABELS)
    tensors = dict(read_file(damaged / "model.safetensors"))
    name = "bert.encoder.layer.1.output.dense.weight"
    tensors[name] = np.array(tensors[name])
    tensors[name][3, :2] = np.nan
    write_file(damaged / "model.safetensors", tensors)
    said = refused(experts=("expert_0", "nan"))
    leaf = "encoder/layer_1/mlp/down/kernel (2 of 256)"
    assert f"{damaged} holds NaN or infinity in {leaf}" in said


def test_a_truncated_file_is_named_with_its_size(place, refused):
    cut = write_model(place / "cut", kind="single_label", labels=LABELS)
    file = cut / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    said = refused(experts=("expert_0", "cut"))
    assert f"{file} ({file.stat().st_size} bytes) is truncated" in said
    assert "copy or download it again" in said


def test_a_mistyped_field_offers_the_nearest(refused):
    said = refused("--set", "search.bugdet=64", code=2)
    assert "'search.bugdet' is no field" in said
    assert "did you mean 'search.budget'?" in said


def test_a_config_file_that_sets_an_unknown_field_is_told_its_line(
    tmp_path, capsys, place
):
    own = tmp_path / "own.py"
    text = (ROOT / "configs" / "dfwe" / "local.py").read_text()
    own.write_text(text.replace("config.sources =", "config.soruces ="))
    line = 1 + own.read_text().splitlines().index(
        '    config.soruces = options["sources"]'
    )
    config = f"{own}:data={place / 'tasks'}"
    assert main(["dfwe", "--config", config, "--workdir", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert said == (
        f"error: {own}, line {line}: the config has no field 'soruces'; did you mean "
        "'sources'?\n"
    )
    launched = launch(f"--config={config}", f"--workdir={tmp_path / 'run'}")
    assert (launched.returncode, launched.stderr) == (2, said)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "flag, message",
    [
        (
            "--config=configs/dfwe/locl.py",
            "--config: there is no file configs/dfwe/locl",
        ),
        (
            "--config=configs/dfwe/local.py:traget=film",
            "config options: 'traget' is unknown; did you mean 'target'?",
        ),
        ("--config.search.bugdet=3", "no field 'bugdet'; did you mean 'budget'?"),
        ("--config.search.budget=many", "--config.search.budget=many: invalid"),
        ("--workdri=runs", "'workdri'. Did you mean: workdir"),
    ],
)
def test_a_mistyped_flag_of_the_script_is_one_line(flag, message, tmp_path):
    config = ["--config=configs/dfwe/local.py"] * (not flag.startswith("--config="))
    done = launch(*config, flag, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_label_missing_from_training_is_said_once(place, tmp_path):
    labels = (*LABELS, "mixed")
    rows = [*sentences(7), {"text": "the film was so so", "label": "mixed"}]
    write_task(tmp_path / "tasks" / "film", labels=labels, dev=rows)
    for seed in range(2):
        write_model(
            tmp_path / f"expert_{seed}", kind="single_label", labels=labels, seed=seed
        )
    experts = experts_of(tmp_path, "expert_0", "expert_1")
    arguments = local(place, tmp_path / "run", experts, data=tmp_path / "tasks")
    done = launch(*arguments, "--seeds=2")
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if "no training row" in line]
    assert told == [
        "warning: task 'film': no training row has the labels mixed, which occur in "
        "dev or test; they cannot be learned"
    ]


@pytest.mark.slow
def test_a_full_disk_leaves_no_half_model_and_the_run_goes_on(place, tmp_path):
    arguments = local(
        place, tmp_path / "run", experts_of(place, "expert_0", "expert_1")
    )
    full = launch(*arguments, limit=22_000)
    told = [line for line in full.stderr.splitlines() if "error" in line.lower()]
    assert full.returncode == 1 and len(told) == 1, full.stderr
    assert f"the disk is full while writing {tmp_path / 'run' / 'model'}" in told[0]
    assert "free some space" in told[0] and "Traceback" not in full.stderr
    assert not results_in(tmp_path / "run")
    done = launch(*arguments)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "results.json").is_file()
    assert hf.load(tmp_path / "run" / "model").labels == LABELS


@pytest.mark.slow
def test_a_full_disk_in_training_is_one_message_without_a_traceback(place, tmp_path):
    done = launch(*local(place, tmp_path / "run", "smoke"), limit=6_000)
    told = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    assert done.returncode == 1 and len(told) == 1, done.stderr
    assert "the disk is full while writing the train state" in told[0]
    assert str(tmp_path / "run" / "experts") in told[0]
    assert "Traceback" not in done.stderr
    # What Orbax's threads leave behind has another name than a state.
    names = {path.name for path in (tmp_path / "run").rglob("*")}
    assert not names & {"result", "results.json", "report.html", "model"}
