"""Which machine a program is for: where a CPU needs other code than an accelerator."""

import contextlib
import contextvars

import jax

_TARGET: contextvars.ContextVar[str | None] = contextvars.ContextVar(
    "target", default=None
)


def backend() -> str:
    """Returns "cpu", "gpu" or "tpu": JAX's default, or what `compiling_for` says."""
    return _TARGET.get() or jax.default_backend()


def network_options() -> dict[str, str] | None:
    """Returns what `jax.jit(compiler_options=...)` takes for programs that are networks.

    On a CPU XLA would join normalisation, matrix product and activation into single
    calls of its YNN library: a transformer is clearly slower with them, while
    Sinkhorn's passes gain a little.
    """
    if backend() != "cpu":
        return None
    return {"xla_cpu_experimental_ynn_fusion_type": ""}


@contextlib.contextmanager
def compiling_for(name: str):
    """Compiles ahead of time for another machine than this one, such as "tpu"."""
    token = _TARGET.set(name)
    try:
        yield
    finally:
        _TARGET.reset(token)
