"""The tests. What is set here is set before torch is imported."""

import os

# One thread a process: of two processes on two cores, threads would wait for each other.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"
