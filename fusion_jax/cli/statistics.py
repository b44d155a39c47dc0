"""fusion-jax statistics: what an owner of data gives away beside a model."""

import argparse
import json

from fusion_jax.cli.failures import WrongUsage


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add = parser.add_argument
    add("--kind", required=True, choices=("gram", "fisher"), help="of the statistics")
    add("--model", required=True, help="model directory, package:NAME/DIR or hub id")
    add("--data", required=True, metavar="DIR", help="the task's folder")
    add("--examples", required=True, type=int, help="rows to draw; all if fewer")
    add("--out", required=True, metavar="FILE", help="a .safetensors file to write")
    add("--split", choices=("train", "dev", "test"), default="train")
    add("--max-length", type=int, default=128, help="tokens of an input")
    add("--layers", default=".*", help="regular expression of kernel leaves (gram)")
    add(
        "--output-gradients",
        action="store_true",
        help="moments of gradients at outputs too, for mats (gram)",
    )
    add(
        "--estimator",
        help="true, sampled or empirical (fisher); default true",
    )
    add("--blocks", type=int, default=0, help="cut wide Grams to blocks of N inputs")
    add("--rank", type=int, default=0, help="keep wide Grams at this rank")
    add("--wider-than", type=int, default=1024, help="inputs from which a Gram is wide")
    add(
        "--noise",
        type=float,
        default=0.0,
        help="deviation of noise on Grams, by the mean of their diagonal; no "
        "differential privacy",
    )
    add("--seed", type=int, default=0, help="of the draw of rows")
    add("--tokens-per-batch", type=int, default=4096)
    add(
        "--tokens-of-head",
        action="store_true",
        help="let the last layer see only the tokens that the head reads",
    )
    add("--overwrite", action="store_true", help="replace --out")


def run(options: argparse.Namespace) -> None:
    """Writes the file and prints what is in it."""
    if not options.out.endswith(".safetensors"):
        raise WrongUsage(f"--out: {options.out}; the name must end with .safetensors")
    from fusion_jax import runtime
    from fusion_jax.systems.saved_statistics import save_statistics

    runtime.initialize()
    written = save_statistics(
        options.model,
        options.data,
        options.out,
        kind=options.kind,
        examples=options.examples,
        split=options.split,
        max_length=options.max_length,
        layers=options.layers,
        outputs=options.output_gradients,
        estimator=options.estimator,
        blocks=options.blocks,
        rank=options.rank,
        wider_than=options.wider_than,
        noise=options.noise,
        seed=options.seed,
        tokens_per_batch=options.tokens_per_batch,
        every_token=not options.tokens_of_head,
        overwrite=options.overwrite,
    )
    if options.json:
        record = written._asdict() | {"file": options.out}
        print(json.dumps({**record, "left_out": list(written.left_out)}))
        return
    size = f"{written.num_bytes / 1e6:.1f} MB"
    if written.kind == "gram":
        print(
            f"{written.layers} layers, {written.inputs} inputs, {written.tokens} "
            f"tokens of {written.examples} examples, {size}"
        )
    else:
        print(f"{written.tensors} tensors, {written.examples} examples, {size}")
    if (options.blocks or options.rank) and not written.cut:
        print(
            f"no Gram has more than {options.wider_than} inputs: all are whole; "
            "--wider-than says from where on they are cut"
        )
    if written.left_out:
        print(f"not in the model's own files: {', '.join(written.left_out)}")
    print(f"statistics: {written.file}")
