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


@contextlib.contextmanager
def compiling_for(name: str):
    """Compiles ahead of time for another machine than this one, such as "tpu"."""
    token = _TARGET.set(name)
    try:
        yield
    finally:
        _TARGET.reset(token)
