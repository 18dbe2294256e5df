"""Shared set-up: quiet logs, a compilation cache for repeated programs."""

import gc
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
import jax
import pytest

# The tests are mostly compilation, which LLVM's lowest level shortens by a fifth and
# XLA's older emitter of fusions, where there still is one, by another third; the
# commands that they start inherit both. `make distill` runs with the commands' own flags.
_FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ < (0, 11):
    _FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", _FLAGS)


@pytest.fixture(autouse=True, scope="session")
def _compilation_cache(tmp_path_factory):
    """One cache for this process, pytest's other workers and the commands they run."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "xla")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    jax.config.update("jax_compilation_cache_dir", str(folder / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@pytest.fixture(autouse=True, scope="module")
def _drop_programs():
    """Frees a module's programs: every one on a CPU holds memory maps until then.

    A process may have 65,530 of them (Linux's vm.max_map_count), and crashes beyond.
    """
    yield
    jax.clear_caches()
    gc.collect()


def pytest_collection_modifyitems(items):
    """Files with long tests come first: the workers then end together."""
    long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)
