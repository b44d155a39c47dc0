"""Contributions as files for a scheduler: a Slurm array, Kubernetes Jobs.

Written, never submitted: who has the cluster looks at them first.
"""

import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence

from fusion_jax.collaboration.jobs import Job


def slurm_array(
    jobs: Sequence[Job], *, name: str = "contribute", workers: int = 0, **more: str
) -> str:
    """A batch file whose array has one task a contribution.

    Args:
      jobs: contributions.
      name: of the array.
      workers: tasks that run at once; 0 leaves it to Slurm.
      more: not used; options of other schedulers.
    """
    del more
    limit = f"%{workers}" if workers else ""
    cases = "\n".join(
        f"  {i}) set -- {shlex.join(job.arguments)} ;;" for i, job in enumerate(jobs)
    )
    return f"""#!/bin/bash
#SBATCH --job-name={label(name)}
#SBATCH --array=0-{len(jobs) - 1}{limit}
#SBATCH --requeue
#SBATCH --output=%x-%A-%a.log
# A task that is started again finds what it handed in.
set -euo pipefail
case "$SLURM_ARRAY_TASK_ID" in
{cases}
esac
exec fusion-jax "$@"
"""


def kubernetes_jobs(
    jobs: Sequence[Job],
    *,
    name: str = "contribute",
    image: str = "fusion-jax",
    retries: int = 2,
    **more: str,
) -> str:
    """A list of Kubernetes Jobs, one a contribution, as JSON (which is YAML too).

    Args:
      jobs: contributions.
      name: what the Jobs' names begin with.
      image: that has the package.
      retries: further starts of a pod that fails.
      more: not used; options of other schedulers.
    """
    del more
    items = []
    for number, job in enumerate(jobs):
        # Kubernetes would put in the variable of each $(NAME); $$ is its plain dollar.
        arguments = [word.replace("$(", "$$(") for word in job.arguments]
        container = {
            "name": "contribute",
            "image": image,
            "command": ["fusion-jax", *arguments],
        }
        items.append(
            {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "metadata": {"name": label(f"{name}-{number}-{job.name}")},
                "spec": {
                    "backoffLimit": retries,
                    "template": {
                        "spec": {
                            "restartPolicy": "Never",
                            "containers": [container],
                        }
                    },
                },
            }
        )
    record = {"apiVersion": "v1", "kind": "List", "items": items}
    return json.dumps(record, indent=2) + "\n"


def label(text: str) -> str:
    """A name that Slurm and DNS take: lower case, digits, '-', at most 63 of them."""
    word = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:63].strip("-")
    return word or "job"


PRINTED: Mapping[str, Callable[..., str]] = {
    "slurm": slurm_array,
    "kubernetes": kubernetes_jobs,
}
"""`(jobs, **options) -> text`; add a scheduler by a line here."""
