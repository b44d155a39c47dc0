# shellcheck shell=bash
# Sourced before a run on NVIDIA GPUs.

# A missing driver is an error, not a run on the CPU.
export JAX_PLATFORMS="${JAX_PLATFORMS:-cuda,cpu}"
# jax takes three quarters of the memory by default; the process has the GPU to itself.
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}"
# Nothing is fetched by every host at once: encoders and tasks lie in folders.
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
