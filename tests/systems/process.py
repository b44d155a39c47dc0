"""One process of a job: process.py ROOT PROCESSES PROCESS PORT MAX_LENGTH.

ROOT holds encoder/ and tasks/; the runs go to ROOT/dfwe_N and ROOT/finetune_N.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from fusion_jax import runtime


def main() -> None:
    root, count, number, port, length = Path(sys.argv[1]), *map(int, sys.argv[2:])
    if count > 1:
        runtime.initialize(
            coordinator=f"localhost:{port}", num_processes=count, process_id=number
        )
    from fusion_jax.systems import dfwe, finetune
    from fusion_jax.systems.defaults import dfwe_config, finetune_config

    short = {"epochs": 1, "batch_size": 4, "learning_rate": 1e-2}
    tune = finetune_config()
    merge = dfwe_config()
    for config in (tune, merge):
        config.encoder = str(root / "encoder")
        config.data = {"reader": "folders", "path": str(root / "tasks")}
        config.max_length = length
    tune.target = "film"
    tune.fit.update(short)
    merge.targets = ("film",)
    merge.search.budget = 24
    merge.plane = 3
    for stage in (merge.source, merge.target, merge.multitask):
        stage.update(short)
    for name, system, config in (("finetune", finetune, tune), ("dfwe", dfwe, merge)):
        result = system.run(config, root / f"{name}_{count}")
        # What this process holds, not what one of them wrote.
        print(f"{name} {json.dumps(result.results['methods'])}")


if __name__ == "__main__":
    main()
