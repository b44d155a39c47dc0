"""Modules that torch peft loads from us, and we from torch peft, say the same."""

import functools
import warnings

import jax
import numpy as np
import pytest

from fusion_jax import trees
from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.checkpoints.modules.host import check_host, host_of
from fusion_jax.checkpoints.modules.peft_read import read_peft
from fusion_jax.checkpoints.modules.peft_write import write_peft
from fusion_jax.models import build_model
from fusion_jax.peft import Module, PeftConfig, attach, init_module, with_module
from fusion_jax.peft.combine import combine
from fusion_jax.peft.low_rank import updates_of

torch = pytest.importorskip("torch", reason="torch is in the extra 'parity'")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft", reason="torch peft is in the extra 'parity'")

TOLERANCE = 2e-6  # of logits of size 1
LENGTH = 5
HEAD = r"head/.*"
OURS = {
    "lora": dict(rank=4, alpha=6.0),
    "rslora": dict(
        rank=4,
        alpha=6.0,
        use_rslora=True,
        rank_pattern=((r"encoder/layer_1/attention/(query|qkv)", 2),),
        alpha_pattern=((r"encoder/layer_0/attention/(value|qkv)", 3.0),),
    ),
    "dora": dict(rank=4, alpha=6.0, use_dora=True),
    "ia3": dict(kind="ia3"),
    "norms": dict(rank=4, train_norms=True),
    "lora_only": dict(
        rank=4, replaces=(r"encoder/layer_\d+/attention/(query|value|qkv)/bias",)
    ),
    "all_biases": dict(rank=4, replaces=(r"encoder/layer_1/.*/bias",)),
    "prompt": dict(kind="prompt", length=LENGTH),
    "prefix": dict(kind="prefix", length=LENGTH, shift_positions=True),
}
ALSO_TABLE = {"bert": ("query", "word"), "gpt2": ("qkv", "word")}
# torch peft has defaults for the other families alone.
DISTILBERT_IA3 = dict(
    target_modules=["k_lin", "v_lin", "ffn.lin2"], feedforward_modules=["ffn.lin2"]
)
THEIRS = {
    "lora": lambda family: peft.LoraConfig(
        task_type="SEQ_CLS",
        r=4,
        lora_alpha=6,
        target_modules=["q_lin", "v_lin"] if family == "distilbert" else None,
    ),
    "rslora": lambda family: peft.LoraConfig(
        task_type="SEQ_CLS",
        r=4,
        lora_alpha=6,
        use_rslora=True,
        rank_pattern={r"1\.attention\.self\.query|1\.attn\.c_attn": 2},
        alpha_pattern={r"0\.attention\.self\.value|0\.attn\.c_attn": 3},
    ),
    "dora": lambda family: peft.LoraConfig(
        task_type="SEQ_CLS", r=4, lora_alpha=6, use_dora=True
    ),
    "table": lambda family: peft.LoraConfig(
        task_type="SEQ_CLS",
        r=4,
        target_modules={
            "bert": ["query", "word_embeddings"],
            "gpt2": ["c_attn", "wte"],
        }[family],
    ),
    "all_linear": lambda family: peft.LoraConfig(
        task_type="SEQ_CLS", r=3, target_modules="all-linear"
    ),
    "lora_only": lambda family: peft.LoraConfig(
        task_type="SEQ_CLS", r=4, bias="lora_only"
    ),
    "all_biases": lambda family: peft.LoraConfig(task_type="SEQ_CLS", r=4, bias="all"),
    "bare": lambda family: peft.LoraConfig(r=4),
    "ia3": lambda family: peft.IA3Config(
        task_type="SEQ_CLS",
        **(DISTILBERT_IA3 if family == "distilbert" else {}),
    ),
    "prompt": lambda family: peft.PromptTuningConfig(
        task_type="SEQ_CLS", num_virtual_tokens=LENGTH
    ),
    "prefix": lambda family: peft.PrefixTuningConfig(
        task_type="SEQ_CLS", num_virtual_tokens=LENGTH
    ),
}
# GPT-2 computes query, key and value in one product: it has no place for a prefix.
WITHOUT = [("gpt2", "prefix")]
FEW = ("lora", "ia3")


def cases(kinds):
    """(family, kind): all of BERT and GPT-2, and a few where only names differ."""
    pairs = [(family, kind) for family in ("bert", "gpt2") for kind in sorted(kinds)]
    pairs += [(family, kind) for family in ("roberta", "distilbert") for kind in FEW]
    return [pair for pair in pairs if pair not in WITHOUT]


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*embedding layers.*")
        yield


@pytest.fixture(scope="module")
def host_folder(tmp_path_factory):
    """`(family) -> folder` of a host with drawn weights."""
    return functools.cache(lambda family: write_host(tmp_path_factory, family))


def write_host(tmp_path_factory, family):
    folder = tmp_path_factory.mktemp("hosts") / family
    common = dict(vocab_size=60, num_labels=3, pad_token_id=0)
    if family in ("bert", "roberta"):
        make = {"bert": transformers.BertConfig, "roberta": transformers.RobertaConfig}
        config = make[family](
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            max_position_embeddings=40,
            type_vocab_size=2 if family == "bert" else 1,
            **common,
        )
    elif family == "distilbert":
        sizes = dict(dim=32, n_layers=2, n_heads=4, hidden_dim=48)
        config = transformers.DistilBertConfig(
            **sizes, **common, max_position_embeddings=40
        )
    else:
        sizes = dict(n_embd=32, n_layer=2, n_head=4, n_inner=48, n_positions=40)
        ends = dict(bos_token_id=1, eos_token_id=1)
        config = transformers.GPT2Config(**sizes, **common, **ends)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    disturb(model).save_pretrained(folder)
    return folder


def disturb(model, size=0.1):
    """Moves what is trained: fresh parameters are 0 or 1 and would hide a mistake."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(size * noise)
    return model


def torch_host(folder):
    return transformers.AutoModelForSequenceClassification.from_pretrained(folder)


def batch(family, kind, rows=4, length=11):
    """Texts of several lengths; of one where torch reads the last token, padded or not.

    transformers' GPT-2 classifier sees no padding where it is given embeddings.
    """
    generator = np.random.default_rng(0)
    ids = generator.integers(5, 60, (rows, length))
    mask = np.ones((rows, length), int)
    for row in range(1, rows) if (family, kind) != ("gpt2", "prompt") else ():
        mask[row, length - 2 * row :] = 0
    return {
        "input_ids": np.where(mask, ids, 0),
        "attention_mask": mask,
        "token_type_ids": generator.integers(0, 2, (rows, length)) * mask,
    }


def their_logits(model, family, kind):
    given = batch(family, kind)
    names = ["input_ids", "attention_mask"]
    names += ["token_type_ids"] if family == "bert" else []
    inputs = {name: torch.tensor(given[name]) for name in names}
    with torch.no_grad():
        if isinstance(model, peft.PeftModel) and kind == "prefix":
            return with_cache(model.eval(), inputs)
        return model.eval()(**inputs).logits.numpy()


def with_cache(model, inputs):
    """What `PeftModelForSequenceClassification.forward` does of a prefix, by hand.

    It looks for 'past_key_values' in the signature, which transformers now calls
    'cache'; the old name is still taken.
    """
    rows = len(inputs["input_ids"])
    seen = torch.ones(rows, LENGTH, dtype=torch.long)
    mask = torch.cat([seen, inputs["attention_mask"]], dim=1)
    inputs = {**inputs, "attention_mask": mask}
    return model.base_model(
        **inputs, past_key_values=model.get_prompt(rows)
    ).logits.numpy()


def our_logits(host, module):
    model = attach(build_model(host.config, "single_label", 3), module.config)
    params = with_module(host.params, module.params)
    given = batch(host.config.family, module.config.kind)
    return np.asarray(jax.jit(model.apply)(params, given)["logits"])


def drawn_module(host, seed=0, **options):
    """A module of ours with a head of its own, all leaves drawn."""
    replaces = (HEAD, *options.pop("replaces", ()))
    config = PeftConfig(replaces=replaces, **options)
    made = init_module(config, host.params, jax.random.key(0))
    random = np.random.default_rng(seed)
    leaves = {
        name: np.asarray(leaf) + 0.2 * random.normal(size=leaf.shape).astype(np.float32)
        for name, leaf in trees.flatten(made.params).items()
    }
    return Module(config, trees.unflatten(leaves), host_of(host).about)


def assert_equal(ours, theirs, host_logits):
    assert np.abs(theirs - host_logits).max() > 0.05, "the module changes nothing"
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE * np.abs(theirs).max())


@pytest.mark.parametrize(("family", "kind"), cases(THEIRS))
def test_a_directory_of_torch_peft_is_read_with_equal_logits(
    host_folder, tmp_path, family, kind
):
    folder = host_folder(family)
    model = peft.get_peft_model(torch_host(folder), THEIRS[kind](family))
    disturb(model, size=0.2)
    model.save_pretrained(tmp_path / "theirs")
    # What is saved is flat, and read so; a model in training may have a network.
    model = peft.PeftModel.from_pretrained(torch_host(folder), tmp_path / "theirs")
    theirs = their_logits(model, family, kind)
    host = hf.load(folder)
    module = read_peft(tmp_path / "theirs", family=family)
    check_host(module, host_of(host))
    without = their_logits(torch_host(folder), family, kind)
    assert_equal(our_logits(host, module), theirs, without)


@pytest.mark.parametrize(("family", "kind"), cases([*OURS, "table"]))
def test_torch_peft_reads_ours_with_equal_logits(host_folder, tmp_path, family, kind):
    folder = host_folder(family)
    host = hf.load(folder)
    options = dict(OURS.get(kind) or dict(rank=3, targets=ALSO_TABLE[family]))
    module = drawn_module(host, **options)
    write_peft(tmp_path / "ours", module)
    with warnings.catch_warnings():
        # Missing and unexpected keys are warnings there.
        warnings.simplefilter("error", UserWarning)
        model = peft.PeftModel.from_pretrained(torch_host(folder), tmp_path / "ours")
    ours, theirs = our_logits(host, module), their_logits(model, family, kind)
    assert_equal(ours, theirs, their_logits(torch_host(folder), family, kind))
    again = read_peft(tmp_path / "ours")
    np.testing.assert_array_equal(our_logits(host, again), ours)
    assert again.host == module.host


@pytest.mark.parametrize("kind", ["cat", "svd", "linear", "rescaled"])
@pytest.mark.parametrize("weights", [(0.7, 0.4), (1.0, -1.0)])
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_merges_are_those_of_torch_peft_where_it_is_right(
    host_folder, tmp_path, family, kind, weights
):
    folder = host_folder(family)
    # rsLoRA is scaled twice by its merges in this version (peft issue 3761).
    rescaled = kind == "rescaled"
    names = ("a", "b")
    for seed, name in enumerate(names):
        config = peft.LoraConfig(r=4, lora_alpha=(6, 9)[seed], use_rslora=rescaled)
        if seed == 0:
            model = peft.get_peft_model(torch_host(folder), config, adapter_name=name)
        else:
            model.add_adapter(name, config)
            model.set_adapter(name)
        disturb(model, size=0.2 + 0.1 * seed)
    model.save_pretrained(tmp_path)
    ours = [read_peft(tmp_path / name, family=family) for name in names]
    told = {"cat": "concatenate", "svd": "svd", "linear": "linear_factors"}
    merged = combine(told.get(kind, "concatenate"), ours, weights).module
    model.add_weighted_adapter(
        list(names), list(weights), "merged", "cat" if rescaled else kind
    )
    found = updates_of(merged)
    layers = {n: m for n, m in model.named_modules() if hasattr(m, "get_delta_weight")}
    assert len(layers) == len(found) == {"bert": 4, "gpt2": 2}[family]
    for layer, update in zip(layers.values(), found.values(), strict=True):
        with torch.no_grad():
            own = {
                name: layer.get_delta_weight(name).numpy()
                for name in (*names, "merged")
            }
        own = {name: x if family == "gpt2" else x.T for name, x in own.items()}
        product = update.a @ update.b
        theirs = own["merged"]
        if rescaled:
            theirs = sum(w * own[name] for name, w in zip(names, weights, strict=True))
            assert np.abs(own["merged"] - theirs).max() > 0.1 * np.abs(theirs).max()
        np.testing.assert_allclose(product, theirs, atol=1e-5 * np.abs(theirs).max())
