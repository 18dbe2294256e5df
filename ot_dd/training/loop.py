"""The one training loop: optax steps scanned on the device, resumable by Orbax."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from ot_dd.checkpoint import Checkpoints
from ot_dd.metrics import Metrics


@flax.struct.dataclass
class TrainState:
    """Everything a step changes.

    Attributes:
      step: steps done, int32 scalar.
      params: trained parameters.
      model_state: other collections, such as batch statistics.
      opt_state: optax's state.
      ema: exponential moving average of `params`.
    """

    step: jax.Array
    params: Any
    model_state: Any
    opt_state: Any
    ema: Any


def make_state(params, tx: optax.GradientTransformation, model_state=None):
    """Returns a fresh `TrainState`; the average starts at the parameters."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state={} if model_state is None else model_state,
        opt_state=tx.init(params),
        ema=jax.tree.map(jnp.array, params),
    )


def make_step(loss_fn, tx: optax.GradientTransformation, *, ema_decay: float = 0.0):
    """Returns one optimisation step.

    Args:
      loss_fn: `(params, model_state, key, data) -> (loss, (model_state, metrics))`.
      tx: the optimiser.
      ema_decay: decay of the parameters' average; 0 keeps it equal to them.

    Returns:
      `(state, key, data) -> (state, metrics)`.
    """

    def step(state: TrainState, key, data):
        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (model_state, metrics)), grads = gradient(
            state.params, state.model_state, key, data
        )
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # The usual warm-up: an average over few steps must forget the initialisation.
        decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
        ema = optax.incremental_update(params, state.ema, 1 - decay)
        state = TrainState(state.step + 1, params, model_state, opt_state, ema)
        return state, {"loss": loss, **metrics}

    return step


def fit(
    name: str,
    state: TrainState,
    step_fn: Callable,
    data: Any,
    key: jax.Array,
    *,
    num_steps: int,
    checkpoints: Checkpoints,
    metrics: Metrics,
    chunk: int = 25,
    save_every: int = 500,
) -> tuple[TrainState, dict[str, list[float]]]:
    """Runs `step_fn` to `num_steps`, resuming from the newest checkpoint.

    Steps run in compiled chunks; the key of a step is `fold_in(key, step)`, so the
    result does not depend on where a run was interrupted, nor on `save_every`.

    Args:
      name: what is trained, for progress and metrics.
      state: the fresh state; donated.
      step_fn: from `make_step`; the same object again is not compiled again.
      data: arrays on the device that every step may read.
      key: the run's key.
      num_steps: total steps.
      checkpoints: where states are kept.
      metrics: progress and metrics.
      chunk: steps in one call of the compiled program.
      save_every: steps between checkpoints.

    Returns:
      The final state and the curve: `{"step": [...], "loss": [...], ...}`.

    Raises:
      FloatingPointError: when the loss stops being finite, naming the step.
    """
    restored = checkpoints.restore({"state": state, "curve": _empty_curve(num_steps)})
    curve = _empty_curve(num_steps)
    if restored is not None:
        state, curve = restored["state"], restored["curve"]
    done = saved = int(state.step)
    while done < num_steps:
        # Chunks end at multiples of `chunk`: at most two lengths are ever compiled.
        length = min(chunk - done % chunk, num_steps - done)
        state, values = _run(step_fn, length, state, key, data)
        done += length
        loss = float(values["loss"])
        if not jnp.isfinite(loss):
            raise FloatingPointError(
                f"{name}: the loss is {loss} at step {done}; the last finite "
                f"checkpoint is at step {saved} in {checkpoints.directory}"
            )
        curve = curve.at[(done - 1) * len(curve) // num_steps].set(loss)
        metrics.write(name, done, **values)
        metrics.progress(name, done, num_steps, f"loss {loss:.4f}")
        if done - saved >= save_every or done == num_steps:
            checkpoints.save(done, {"state": state, "curve": curve})
            saved = done
    points = [
        ((i + 1) * num_steps // len(curve), float(v)) for i, v in enumerate(curve)
    ]
    points = [(step, loss) for step, loss in points if loss == loss]
    return state, {"step": [p[0] for p in points], "loss": [p[1] for p in points]}


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2,))
def _run(step_fn, length, state, key, data):
    """Runs `length` steps; compiled once for each `step_fn` object and length."""

    def body(state, _):
        return step_fn(state, jax.random.fold_in(key, state.step), data)

    state, values = jax.lax.scan(body, state, length=length)
    return state, jax.tree.map(jnp.mean, values)


def _empty_curve(num_steps: int) -> jax.Array:
    return jnp.full((min(num_steps, 100),), jnp.nan)
