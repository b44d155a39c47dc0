"""Our side of one merge by statistics of data: models and token rows to a model.

    python scripts/bench/dataless_ours.py JOB

JOB is JSON: way, models (folders of GPT-2 classifiers), rows (a '.npy' file each), out,
batch, and alpha of RegMean. Ways:

- layers: `regress_stages` over all models, layer by layer; no file in between.
- files: for each model in turn its Grams, to a file; then the merge of those files.
- fisher: for each model in turn its diagonal Fisher, to a file; then the merge.

OUT/model gets the merged model and OUT/statistics the files. Prints one line of JSON:
seconds of each phase, and 'compile' of all of them. The weights are mapped, not read.
"""

import contextlib
import importlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

KIND = "single_label"
LABELS = ("LABEL_0", "LABEL_1")
LAYERS = r"encoder/.*"
"""What is regressed. The head is averaged: FusionBench leaves it out."""

MODULES = (
    *("checkpoints.huggingface", "checkpoints.run_merge", "checkpoints.direct_plan"),
    *("merging.regmean_plus_plus", "training.fisher", "training.statistics"),
)


class Clock:
    """Seconds of phases by name; a phase that comes again is added."""

    def __init__(self) -> None:
        """Nothing is measured yet."""
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measures what runs within."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - begun)

    def add(self, name: str, seconds: float) -> None:
        """Adds to a phase."""
        self.seconds[name] = self.seconds.get(name, 0) + seconds


def main() -> None:
    """Runs one job."""
    job = json.loads(sys.argv[1])
    clock = Clock()
    with clock("import"):
        import jax

        from fusion_jax import runtime

        # All that the ways import, so that no other phase pays for it.
        for name in MODULES:
            importlib.import_module(f"fusion_jax.{name}")
        runtime.initialize()

    def compiled(event: str, duration_secs: float, **_: Any) -> None:
        if event.endswith("backend_compile_duration"):
            clock.add("compile", duration_secs)

    jax.monitoring.register_event_duration_secs_listener(compiled)
    WAYS[job["way"]](job, clock)
    if "torch" in sys.modules:
        raise SystemExit("torch was imported; this side is to run without it")
    print(json.dumps(clock.seconds))


def layers(job: Mapping[str, Any], clock: Clock) -> None:
    """RegMean layer by layer."""
    from fusion_jax.checkpoints import huggingface
    from fusion_jax.checkpoints.description import read_description
    from fusion_jax.merging.regmean_plus_plus import regress_stages

    with clock("load"):
        experts = [mapped(folder) for folder in job["models"]]
        batches = [batches_of(file, job["batch"]) for file in job["rows"]]
    with clock("merge"):
        merged, _ = regress_stages(
            network(job["models"][0]).stages,
            experts,
            batches,
            [1 / len(experts)] * len(experts),
            alpha=job["alpha"],
            ridge=0,
            cascade=False,
            layers=LAYERS,
        )
    with clock("save"):
        config = read_description(Path(job["models"][0]), KIND).config
        out = Path(job["out"]) / "model"
        out.parent.mkdir(parents=True, exist_ok=True)
        donor = job["models"][0]
        huggingface.save(
            out, merged, config, kind=KIND, labels=LABELS, tokenizer_from=donor
        )


def files(job: Mapping[str, Any], clock: Clock) -> None:
    """RegMean by files of Grams."""
    from fusion_jax.checkpoints.statistics_file import Layer, stored_gram
    from fusion_jax.training.statistics import collect_grams

    def grams(folder: str, file: str) -> tuple[dict[str, Any], dict[str, Any]]:
        params, batches = mapped(folder), batches_of(file, job["batch"])
        with clock("collect"):
            found = collect_grams(network(folder), params, batches, layers=LAYERS)
        tensors = {leaf: entry.source for leaf, entry in entries(folder).items()}
        described = {
            tensors[leaf]: Layer(read, tensors[leaf[: -len("kernel")] + "bias"], -2)
            for leaf, read in found.readers.items()
        }
        arrays: dict[str, Any] = {}
        with clock("pack"):
            # Each is dropped when its triangle is there.
            for name in list(found.inputs):
                gram: Any = found.inputs.pop(name)
                arrays |= stored_gram(name, gram)
                del gram
        more = {"layers": described, "counts": found.counts}
        return {**more, "examples": found.examples}, arrays

    statistics = owners(job, clock, "gram", grams)
    merge(job, clock, "regmean", statistics, {"alpha": job["alpha"], "ridge": 0})


def fisher(job: Mapping[str, Any], clock: Clock) -> None:
    """Fisher merging by files, the exact expectation example by example."""
    from fusion_jax import trees
    from fusion_jax.models.names import TRANSFORMS
    from fusion_jax.training.fisher import collect_fisher

    def fishers(folder: str, file: str) -> tuple[dict[str, Any], dict[str, Any]]:
        params, batches = mapped(folder), batches_of(file, job["batch"])
        with clock("collect"):
            tree, count = collect_fisher(network(folder), params, batches, kind=KIND)
        named = entries(folder)
        arrays = {
            named[leaf].source: TRANSFORMS[named[leaf].transform](x)
            for leaf, x in trees.flatten(tree).items()
        }
        return {"estimator": "true", "examples": count}, arrays

    merge(job, clock, "fisher", owners(job, clock, "fisher", fishers), {})


def owners(job: Mapping[str, Any], clock: Clock, kind: str, collect: Any) -> list[Path]:
    """Writes the statistics of one model after the other.

    Args:
      job: see above.
      clock: of the phases.
      kind: of the statistics.
      collect: (folder, rows) -> (fields of the manifest, arrays).
    """
    from fusion_jax.checkpoints.lazy import open_checkpoint
    from fusion_jax.checkpoints.statistics_file import (
        Manifest,
        weights_sha256,
        write_statistics,
    )

    place = Path(job["out"]) / "statistics"
    place.mkdir(parents=True, exist_ok=True)
    written = []
    for folder, rows in zip(job["models"], job["rows"], strict=True):
        more, arrays = collect(folder, rows)
        with clock("hash"):
            digest = weights_sha256(open_checkpoint(Path(folder)))
        name = Path(folder).name
        with clock("write"):
            written.append(place / f"{name}.safetensors")
            manifest = Manifest(kind=kind, model=name, weights_sha256=digest, **more)
            write_statistics(written[-1], manifest, arrays)
    return written


def merge(
    job: Mapping[str, Any],
    clock: Clock,
    method: str,
    statistics: list[Path],
    options: Mapping[str, Any],
) -> None:
    """The merge of models and their files, as the command does it."""
    from fusion_jax.checkpoints.direct_plan import direct_plan
    from fusion_jax.checkpoints.run_merge import run_merge

    with clock("merge"):
        folders = [Path(folder) for folder in job["models"]]
        plan = direct_plan(method, folders, options=options, statistics=statistics)
        run_merge(plan, Path(job["out"]) / "model")


def entries(folder: str) -> dict[str, Any]:
    """Leaf -> the tensor of the files."""
    from fusion_jax.checkpoints.lazy import open_checkpoint
    from fusion_jax.checkpoints.tensor_names import entries_of

    return entries_of(open_checkpoint(Path(folder)), KIND)


def mapped(folder: str) -> dict[str, Any]:
    """The parameters as views of the file's pages."""
    from fusion_jax import trees
    from fusion_jax.checkpoints.lazy import open_checkpoint
    from fusion_jax.models.names import TRANSFORMS

    model = open_checkpoint(Path(folder))
    return trees.unflatten(
        {
            leaf: TRANSFORMS[entry.transform](model.read(entry.source))
            for leaf, entry in entries(folder).items()
        }
    )


def network(folder: str) -> Any:
    """The model, its last layer for every token as in the peer."""
    from fusion_jax.checkpoints.description import read_description
    from fusion_jax.models import build_model

    config = read_description(Path(folder), KIND).config
    return build_model(config, KIND, len(LABELS), every_token=True)


def batches_of(file: str, size: int) -> list[dict[str, Any]]:
    """Rows of token ids as batches."""
    import numpy as np

    rows = np.load(file).astype(np.int32)
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    return [{"input_ids": part, "attention_mask": np.ones_like(part)} for part in parts]


WAYS = {"layers": layers, "files": files, "fisher": fisher}


if __name__ == "__main__":
    main()
