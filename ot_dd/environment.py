"""What commands set before JAX starts: they import this first."""

import glob
import os

# The C++ side logs an internal notice for every compiled CPU program.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# LLVM's higher levels double the compile time of CPU programs and gain nothing here:
# the arithmetic is in Eigen's convolutions and matrix products. XLA's compiler for
# NVIDIA's GPUs supports no level below 2.
if os.environ.get("JAX_PLATFORMS") == "cpu" or not glob.glob("/dev/nvidia[0-9]*"):
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")
