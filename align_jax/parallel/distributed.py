"""Start-up of several processes, from the environment."""

import os

import jax

COORDINATOR = "ALIGN_JAX_COORDINATOR"
PROCESSES = "ALIGN_JAX_PROCESSES"
PROCESS_ID = "ALIGN_JAX_PROCESS_ID"
POD = "ALIGN_JAX_POD"


def initialise() -> None:
  """Joins the other processes of the run; call before the first array.

  With ALIGN_JAX_COORDINATOR=HOST:PORT, ALIGN_JAX_PROCESSES=N and
  ALIGN_JAX_PROCESS_ID=0..N-1 (launch/local.sh sets them), joins those. With
  ALIGN_JAX_POD=1 (launch/tpu_pod.sh sets it), JAX asks the TPU pod, SLURM or
  Kubernetes for the same three. Otherwise this process is alone. A second
  call does nothing.

  Raises:
    ValueError: some of the three variables are set, but not all.
  """
  if jax.distributed.is_initialized():
    return
  names = (COORDINATOR, PROCESSES, PROCESS_ID)
  missing = [n for n in names if not os.environ.get(n)]
  if not missing:
    jax.distributed.initialize(
        os.environ[COORDINATOR], int(os.environ[PROCESSES]),
        int(os.environ[PROCESS_ID]))
  elif len(missing) < len(names):
    raise ValueError(f"{', '.join(missing)} must be set too, or none of "
                     f"{', '.join(names)}")
  elif os.environ.get(POD) == "1":
    jax.distributed.initialize()


def is_main() -> bool:
  """Whether this process writes what only one may write."""
  return jax.process_index() == 0
