"""fusion-jax peft: modules shown, read, written and merged from the shell."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from fusion_jax import trees
from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.checkpoints.modules import host_of, load_module, save_module
from fusion_jax.peft import PeftConfig, init_module
from fusion_jax.peft.low_rank import updates_of
from tests.small_models import write_model


@pytest.fixture(scope="module")
def folders(place, tmp_path_factory):
    """Two modules in our form and one in peft's, of the encoder in `place`."""
    root = tmp_path_factory.mktemp("modules")
    checkpoint = hf.load(place / "encoder")
    about = host_of(checkpoint).about
    for seed, name in enumerate(("first", "second", "theirs")):
        config = PeftConfig(rank=2 + seed, alpha=6.0)
        made = init_module(config, checkpoint.params, jax.random.key(0), about=about)
        random = np.random.default_rng(seed)
        drawn = trees.map_with_names(
            lambda _, x, random=random: random.normal(size=x.shape).astype(np.float32),
            made.params,
        )
        form = "peft" if name == "theirs" else "fusion_jax"
        save_module(root / name, made._replace(params=drawn), form=form)
    return root


def test_show_says_what_a_module_is(command, place, folders):
    code, out, error = command("peft", "show", folders / "first")
    assert (code, error) == (0, "")
    assert "kind: lora" in out and "  rank: 2" in out
    assert "host: encoder, family bert, hidden_size 16" in out
    assert "layers: 4; parameters: 256" in out
    code, out, _ = command(
        "peft", "show", folders / "theirs", "--json", "--host", place / "encoder"
    )
    record = json.loads(out)
    assert code == 0 and record["form"] == "peft"
    assert record["config"]["rank"] == 4 and record["layers"] == 4


def test_export_and_import_are_inverse(command, place, folders, tmp_path):
    out = tmp_path / "peft"
    code, said, error = command("peft", "export", folders / "first", "--out", out)
    assert code == 0, error
    assert f"module: {out}" in said and (out / "adapter_model.safetensors").is_file()
    code, said, error = command(
        *("peft", "import", out, "--out", tmp_path / "ours", "--json", "--strict-host"),
        *("--host", place / "encoder"),
    )
    assert code == 0, error
    assert json.loads(said)["from"] == "peft"
    one, again = load_module(folders / "first"), load_module(tmp_path / "ours")
    a, b = trees.flatten(one.params), trees.flatten(again.params)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


@pytest.fixture
def headed(folders, tmp_path):
    """The first module, with a head of its own."""
    first = load_module(folders / "first")
    random = np.random.default_rng(3)
    head = {
        "head/classifier/kernel": random.normal(size=(16, 3)).astype(np.float32),
        "head/classifier/bias": random.normal(size=3).astype(np.float32),
    }
    leaves = {**trees.flatten(first.params), **head}
    config = dataclasses.replace(first.config, replaces=("head/.*",))
    one = first._replace(config=config, params=trees.unflatten(leaves))
    return save_module(tmp_path / "headed", one)


def test_what_is_left_out_is_left_out_of_the_config(command, place, headed, tmp_path):
    out = tmp_path / "bare"
    leave = ("--leave-out", "head/.*", "--form", "fusion_jax", "--out", out)
    code, _, error = command("peft", "export", headed, *leave)
    assert code == 0, error
    one = load_module(out, host=host_of(hf.load(place / "encoder")), strict_host=True)
    assert one.config.replaces == ()
    assert not any(name.startswith("head/") for name in trees.flatten(one.params))


def test_a_control_draws_no_head(command, place, headed, tmp_path):
    hosts = ("--origin", place / "encoder", "--receiver", place / "encoder")
    control = ("--control", "gaussian", "--out", tmp_path / "control")
    code, _, error = command("peft", "port", headed, *hosts, *control)
    assert code == 0, error
    given = trees.flatten(load_module(headed).params)
    for name, leaf in trees.flatten(load_module(tmp_path / "control").params).items():
        assert np.array_equal(leaf, given[name]) == name.startswith("head/"), name


def test_merge_adds_updates(command, folders, tmp_path):
    names = [folders / name for name in ("first", "second", "theirs")]
    code, said, error = command(
        *("peft", "merge", "--method", "concatenate", "--modules", *names),
        *("--weights", "1", "-0.5", "0.25", "--out", tmp_path / "out"),
    )
    assert code == 0, error
    assert f"module: {tmp_path / 'out'}" in said
    found = updates_of(load_module(tmp_path / "out"))
    sources = [updates_of(load_module(name)) for name in names]
    for path, update in found.items():
        expected = sum(
            weight * source[path].a @ source[path].b
            for weight, source in zip((1, -0.5, 0.25), sources, strict=True)
        )
        np.testing.assert_allclose(update.a @ update.b, expected, atol=1e-4)


def test_merge_says_what_a_cut_lost_and_writes_for_peft(command, folders, tmp_path):
    names = [folders / name for name in ("first", "second")]
    code, said, error = command(
        *("peft", "merge", "--method", "svd", "--modules", *names, "--json"),
        *("--set", "rank=2", "--form", "peft", "--out", tmp_path / "out"),
    )
    assert code == 0, error
    record = json.loads(said)
    assert record["rank"] == 2 and record["weights"] == [0.5, 0.5]
    assert all(0 < error < 1 for error in record["lost"].values())
    values = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (values["r"], values["lora_alpha"]) == (2, 2)


def test_methods_are_listed(command):
    code, said, _ = command("peft", "merge", "--methods", "--json")
    rows = json.loads(said)
    assert code == 0 and rows["concatenate"]["exact"] and not rows["ties"]["exact"]
    code, said, _ = command("peft", "merge", "--methods")
    assert code == 0 and "concatenate" in said and "exact" in said


def test_another_host_is_told_or_refused(command, folders, tmp_path):
    other = write_model(tmp_path / "other", seed=5, tokenizer=False)
    code, _, error = command("peft", "show", folders / "first", "--host", other)
    assert code == 0 and "warning: " in error and "made for the host" in error
    code, _, error = command(
        "peft", "show", folders / "first", "--host", other, "--strict-host"
    )
    assert code == 1 and error.startswith("error: ") and "--strict-host" in error
    # Modules of two hosts are merged with a warning, or not.
    one = load_module(folders / "first")
    about = {**one.host, "sha256": "0" * 64}
    save_module(tmp_path / "elsewhere", one._replace(host=about))
    merge = ("peft", "merge", "--method", "svd", "--out", tmp_path / "out")
    names = ("--modules", folders / "second", tmp_path / "elsewhere")
    code, _, error = command(*merge, *names, "--strict-host")
    assert code == 1 and "2 hosts of one shape" in error
    code, _, error = command(*merge, *names)
    assert code == 0 and "2 hosts of one shape" in error


def test_wrong_input_is_told_without_a_traceback(command, folders, tmp_path):
    out = tmp_path / "out"
    svd = ("merge", "--method", "svd", "--modules", folders / "first", "--out", out)
    cases = [
        (("show", tmp_path / "none"), 1, "does not exist"),
        (("show", folders / "first", "--strict-host"), 2, "give --host MODEL"),
        (("export", folders / "first", "--out", folders / "second"), 1, "--overwrite"),
        (
            ("export", folders / "first", "--form", "adapterhub", "--out", out),
            1,
            "for adapters, not lora",
        ),
        (("merge", "--out", out), 2, "--method: none given"),
        (
            ("merge", "--method", "no", "--modules", folders / "first", "--out", out),
            2,
            "not one of concatenate, svd",
        ),
        (
            (*svd, "--weights", "1", "2"),
            2,
            "2 for 1 modules",
        ),
        (
            (*svd, "--weights", "2", "--set", "rnk=2"),
            1,
            "rnk: no option of svd, which has rank, energy",
        ),
    ]
    for arguments, expected, said in cases:
        code, _, error = command("peft", *arguments)
        assert (code, said in error) == (expected, True), (arguments, error)
        assert "Traceback" not in error
    assert not out.exists()


def test_port_copies_between_hosts_of_one_shape(command, place, folders, tmp_path):
    other = write_model(tmp_path / "other", seed=5, tokenizer=False)
    port = ("peft", "port", folders / "first", "--origin", place / "encoder")
    out = tmp_path / "ported"
    code, said, error = command(*port, "--receiver", other, "--out", out, "--json")
    assert code == 0, error
    assert json.loads(said)["method"] == "copy"
    checkpoint = hf.load(other)
    ported = load_module(out, host=host_of(checkpoint), strict_host=True)
    first = trees.flatten(load_module(folders / "first").params)
    for name, leaf in trees.flatten(ported.params).items():
        np.testing.assert_array_equal(leaf, first[name])
    # A control keeps each tensor's entries, in another order.
    control = ("--control", "permuted", "--out", tmp_path / "control")
    code, _, error = command(*port, "--receiver", other, *control)
    assert code == 0, error
    for name, leaf in trees.flatten(load_module(tmp_path / "control").params).items():
        np.testing.assert_array_equal(np.sort(leaf, None), np.sort(first[name], None))
        assert not np.array_equal(leaf, first[name])
    # From weights alone: the module fits the receiver.
    way = ("--method", "subspace", "--set", "rank=4", "--out", tmp_path / "subspace")
    code, _, error = command(*port, "--receiver", other, *way)
    assert code == 0, error
    load_module(tmp_path / "subspace", host=host_of(checkpoint), strict_host=True)


def test_port_by_what_hosts_say_of_one_text(command, place, folders, tmp_path):
    # A host is most like itself: the assignment is the identity.
    hosts = ("--origin", place / "encoder", "--receiver", place / "encoder")
    way = ("--method", "correlation", "--data", place / "opinion")
    code, _, error = command(
        *("peft", "port", folders / "first", *hosts, *way, "--max-length", "16"),
        *("--out", tmp_path / "out"),
    )
    assert code == 0, error
    first = trees.flatten(load_module(folders / "first").params)
    for name, leaf in trees.flatten(load_module(tmp_path / "out").params).items():
        np.testing.assert_allclose(leaf, first[name], atol=1e-6)


def test_ports_that_cannot_be_are_told(command, place, folders, tmp_path):
    port = ("peft", "port", folders / "first", "--out", tmp_path / "out")
    hosts = ("--origin", place / "encoder", "--receiver", place / "encoder")
    for arguments, said in (
        ((), "--origin: none given"),
        ((*hosts, "--method", "no"), "not one of copy, skip"),
        ((*hosts, "--method", "ridge"), "give --data, a task folder"),
        ((*hosts, "--control", "no"), "not one of gaussian"),
    ):
        code, _, error = command(*port, *arguments)
        assert code == 2 and said in error, error
    code, said, _ = command("peft", "port", "--methods", "--json")
    assert code == 0 and json.loads(said)["copy"]["needs"] == "shapes"
