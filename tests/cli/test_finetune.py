import json


def test_one_command_leaves_scores_a_report_and_a_model(command, place, tmp_path):
    arguments = (
        "finetune",
        "--data",
        place / "opinion",
        "--encoder",
        place / "encoder",
        "--workdir",
        tmp_path / "run",
        "--max-length",
        "16",
        "--epochs",
        "1",
        "--batch-size",
        "4",
        "--learning-rate",
        "1e-3",
        "--seed",
        "3",
        "--set",
        "fit.head_epochs=0",
    )
    code, out, error = command(*arguments)
    assert code == 0, error
    assert out.splitlines()[0].split() == [
        "split",
        "score",
        "95",
        "%",
        "interval",
        "accuracy",
        "f1_macro",
    ]
    for name in ("report.html", "model"):
        assert str(tmp_path / "run" / name) in out
        assert (tmp_path / "run" / name).exists()
    code, out, error = command(*arguments, "--json", "--quiet")
    results = json.loads(out)
    assert (code, error) == (0, "")
    assert results == json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["seed"] == 3
    assert results["config"]["fit"]["learning_rate"] == 1e-3

    code, _, error = command(*arguments, "--shots", "6")
    assert code == 1
    assert "config.shots: 0 there, 6 asked for" in error
    assert "--overwrite" in error


def test_a_module_is_trained_by_one_option(command, place, tmp_path):
    code, out, error = command(
        *("finetune", "--data", place / "opinion", "--encoder", place / "encoder"),
        *("--workdir", tmp_path / "run", "--max-length", "16", "--epochs", "1"),
        *("--peft", "prompt", "--set", "peft.length=2", "--set", "fit.head_epochs=0"),
    )
    assert code == 0, error
    assert str(tmp_path / "run" / "module") in out
    assert "no model: prompt modules cannot be merged" in out
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["module"]["kind"] == "prompt"

    code, _, error = command(
        *("finetune", "--data", place / "opinion", "--encoder", place / "encoder"),
        *("--workdir", tmp_path / "other", "--peft", "loha"),
    )
    assert code == 1 and "choose one of lora, ia3, adapter" in error
