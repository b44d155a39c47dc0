# shellcheck shell=bash
# Sourced before a run on TPUs.

# A TPU that is missing or held by another process is an error, not a run on the CPU.
export JAX_PLATFORMS="${JAX_PLATFORMS:-tpu,cpu}"
# Nothing is fetched by every host at once: encoders and tasks lie in folders.
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
