"""The one training loop: optax steps scanned on the device, resumable by Orbax."""

import contextlib
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import SingleDeviceSharding

from ot_dd.checkpoint import Checkpoints
from ot_dd.data import Stream
from ot_dd.flops import traced_flops
from ot_dd.metrics import Metrics, Stopped
from ot_dd.parallel import data_mesh, keep, place, to_host, told_to_end

CHUNK = 25  # Steps in one call of a compiled program.


@flax.struct.dataclass
class TrainState:
    """Everything a step changes.

    Attributes:
      step: steps done, int32 scalar.
      params: trained parameters.
      model_state: other collections, such as batch statistics.
      opt_state: optax's state.
      ema: exponential moving average of `params`, in float32 or wider, or None.
    """

    step: jax.Array
    params: Any
    model_state: Any
    opt_state: Any
    ema: Any


def make_state(
    params: Any,
    tx: optax.GradientTransformation,
    model_state: Any = None,
    *,
    average: bool = True,
) -> TrainState:
    """Returns a fresh `TrainState`.

    Its arrays are copies, each of its own: `fit` donates them.

    Args:
      params: what is trained.
      tx: the optimiser.
      model_state: other collections that steps change; default none.
      average: whether the state has an average, which starts at the parameters.
    """

    def wide(p):  # A narrow average of slow steps would stand still.
        return jnp.array(p, jnp.promote_types(p.dtype, jnp.float32))

    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state={} if model_state is None else model_state,
        opt_state=tx.init(params),
        ema=jax.tree.map(wide, params) if average else None,
    )
    return jax.tree.map(jnp.array, state)


def make_step(
    loss_fn: Callable, tx: optax.GradientTransformation, *, ema_decay: float = 0.0
) -> Callable:
    """Returns one optimisation step.

    Args:
      loss_fn: `(params, model_state, key, data) -> (loss, (model_state, metrics))`.
      tx: the optimiser.
      ema_decay: decay of the parameters' average, in states that have one; 0 keeps it
        equal to them. In step `s` it is `(1 + s) / (10 + s)` at most.

    Returns:
      `(state, key, data) -> (state, metrics)`, the loss among the metrics.

    Raises:
      ValueError: in the step, for a metric called `loss`, `name`, `step` or `time`.
    """

    def step(state: TrainState, key, data):
        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (model_state, metrics)), grads = gradient(
            state.params, state.model_state, key, data
        )
        taken = {"loss", "name", "step", "time"} & set(metrics)
        if taken:
            raise ValueError(f"loss_fn has metrics called {sorted(taken)}: rename them")
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = None
        if state.ema is not None:
            # The usual warm-up: an average over few steps must forget how it began.
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
    chunk: int = CHUNK,
    save_every: int = 500,
    strategy: str = "replicate",
) -> tuple[TrainState, dict[str, list[float]]]:
    """Runs `step_fn` to `num_steps`, resuming from the newest checkpoint.

    With several devices the state lies on the mesh by `strategy`, batches that a loss
    passes through `parallel.split` are divided among them, and what is returned is
    whole again, without the optimiser's part. Steps run in compiled chunks; the key of
    a step is `fold_in(key, step)`, so the result does not depend on where a run was
    interrupted, nor on `save_every`.

    Args:
      name: what is trained, for progress and metrics.
      state: the fresh state; donated. Several devices get copies of it: keep no
        reference to one that is large.
      step_fn: from `make_step`; the same object again is not compiled again.
      data: arrays on the device that every step may read; a `Stream` among them is read
        while the network trains, and a step gets its `Batch` in that place.
      key: the run's key.
      num_steps: total steps.
      checkpoints: where states are kept.
      metrics: progress and metrics.
      chunk: steps in one call of the compiled program.
      save_every: steps between checkpoints.
      strategy: "replicate", or "fsdp": parameters and optimiser state are split.

    Returns:
      The final state, whose `opt_state` is None, and the curve: `{"step": [...], "loss":
      [...]}`.

    Raises:
      FloatingPointError: when the loss or, where they would be saved, the parameters
        stop being finite, naming the step.
      ValueError: when the checkpoint is of more steps than `num_steps`.
      Stopped: when the process was told to end; the state is saved.
    """
    mesh = data_mesh()
    state, curve = _restore(checkpoints, state, strategy)
    stream, data = _stream_of(data)
    key, data = place((key, data), mesh)
    done = saved = int(state.step)
    if done > num_steps:
        raise ValueError(
            f"{name}: {checkpoints.directory} is at step {done}, beyond num_steps="
            f"{num_steps}: give it that many, or another directory"
        )
    curve = place(jnp.asarray(_spread(to_host(curve), num_steps)), mesh)
    if stream is not None:
        chunk = stream.chunk(chunk)
    # Chunks end at multiples of `chunk`: at most two lengths are ever compiled.
    ends = [*range(done - done % chunk + chunk, num_steps, chunk), num_steps]
    lengths = np.diff([done, *ends]).tolist() if done < num_steps else []
    feed = itertools.repeat(None)
    if stream is not None:
        feed = stream.feed(mesh, done, iter(lengths))
    batches = next(feed, None)
    for length in lengths:
        with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
            state, values = _run(step_fn, length, strategy, state, key, data, batches)
        batches = next(feed, None)  # read while the device is at work
        done += length
        loss = float(values["loss"])
        ending = told_to_end() or metrics.stop.is_set()
        save = done - saved >= save_every or done == num_steps or ending
        if not np.isfinite(loss) or save and not bool(_finite(state.params)):
            what = (
                "parameters are not finite" if np.isfinite(loss) else f"loss is {loss}"
            )
            last = (
                f"the last finite checkpoint is at step {saved} in "
                f"{checkpoints.directory}"
            )
            raise FloatingPointError(
                f"{name}: the {what} at step {done}; "
                + (last if saved else "there is no checkpoint yet")
            )
        column = (done - 1) * curve.shape[1] // num_steps
        curve = curve.at[:, column].set(jnp.array([done, loss]))
        metrics.write(name, done, **values)
        if save:
            checkpoints.save(done, {"state": state, "curve": curve})
            saved = done
        if ending:
            raise Stopped(f"{name}, step {done}, which is saved")
        metrics.progress(name, done, num_steps, f"loss {loss:.4f}")
    points = sorted((int(s), float(v)) for s, v in to_host(curve).T if s > 0)
    curve = {"step": [p[0] for p in points], "loss": [p[1] for p in points]}
    return _result(state), curve


def run_flops(
    step_fn, state, data, key, num_steps: int, *, strategy: str = "replicate"
) -> float:
    """Returns the operations of a whole run of `fit` with the same arguments.

    On one device `fit` then takes the same traced program.
    """
    traced, length = trace_steps(
        step_fn, state, data, key, num_steps, strategy=strategy
    )
    return traced_flops(traced) * num_steps / length


def trace_steps(
    step_fn, state, data, key, num_steps: int, *, mesh=None, strategy="replicate"
):
    """Returns the program that `fit` runs again and again, traced, and its steps.

    Args:
      step_fn: as for `fit`, like all that follow; arrays may be `jax.ShapeDtypeStruct`.
      state: the fresh state.
      data: arrays, or a `Stream` among them.
      key: the run's key.
      num_steps: total steps.
      mesh: the devices, or None for one.
      strategy: how the state lies on the mesh.
    """
    stream, data = _stream_of(data)
    length, batches = min(CHUNK, num_steps), None
    if stream is not None:
        length = min(stream.chunk(CHUNK), num_steps)
        batches = stream.example(length, mesh)
    if mesh is not None:
        state = place(state, mesh, strategy=strategy)
        key, data = place((key, data), mesh)
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        traced = _run.trace(step_fn, length, strategy, state, key, data, batches)
    return traced, length


def restore(
    checkpoints: Checkpoints,
    init: Callable[[], TrainState],
    *,
    strategy: str = "replicate",
) -> TrainState:
    """Returns the state that `fit` returned, of a run that is finished.

    Args:
      checkpoints: where it is kept.
      init: returns the fresh state; it is not called, but for its structure.
      strategy: how the state lay on the mesh, which has room for it so.

    Raises:
      ValueError: when the checkpoint is damaged or gone.
    """
    alone = SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=alone),
        jax.eval_shape(init),
    )
    state = _restore(checkpoints, shapes, strategy)[0]
    if isinstance(state.step, jax.ShapeDtypeStruct):
        raise ValueError(
            f"{checkpoints.directory} has no checkpoint, though its run is finished: "
            "delete that folder, and the same command makes it again"
        )
    return _result(state)


def _restore(checkpoints, state, strategy):
    """Returns the newest checkpoint's state and curve, or fresh ones, on the mesh."""
    fresh = {"state": state, "curve": _empty_curve()}
    mesh = data_mesh()
    fresh["curve"] = place(fresh["curve"], mesh)
    fresh["state"] = place(state, mesh, strategy=strategy)
    restored = checkpoints.restore(fresh) or fresh
    return restored["state"], restored["curve"]


def _result(state):
    """Returns a state as programs without a mesh take it, but for the optimiser's part.

    That part is twice as large as the network, which one device has to hold whole.
    """
    state = state.replace(opt_state=None)

    def one(x):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            numbers = jnp.asarray(to_host(jax.random.key_data(x)))
            return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(x))
        return jnp.asarray(to_host(x))

    return state if data_mesh() is None else jax.tree.map(one, state)


def _stream_of(data):
    """Returns the `Stream` in a tree, or None, and the tree with None in its place."""

    def is_stream(part):
        return isinstance(part, Stream)

    leaves = jax.tree.leaves(data, is_leaf=lambda p: is_stream(p) or p is None)
    stream = next(filter(is_stream, leaves), None)
    if stream and sum(leaf is None or is_stream(leaf) for leaf in leaves) > 1:
        raise ValueError("beside a Stream, data may hold neither another nor None")
    rest = jax.tree.map(
        lambda part: None if is_stream(part) else part, data, is_leaf=is_stream
    )
    return stream, rest


def _with_batch(data, batch):
    """Puts a step's batch where the `Stream` was."""
    if batch is None:
        return data
    return jax.tree.map(
        lambda part: batch if part is None else part, data, is_leaf=lambda p: p is None
    )


@jax.jit
def _finite(tree):
    """Returns whether all floats of a tree are finite."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.array([jnp.isfinite(x).all() for x in floats]))


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(3,))
def _run(step_fn, length, strategy, state, key, data, batches=None):
    """Runs `length` steps; compiled once for each `step_fn` object and length."""

    def body(state, batch):
        own = _with_batch(data, batch)
        state, values = step_fn(state, jax.random.fold_in(key, state.step), own)
        return keep(state, strategy), values

    state, values = jax.lax.scan(body, state, batches, length=length)
    return state, jax.tree.map(jnp.mean, values)


def _spread(curve: np.ndarray, num_steps: int) -> np.ndarray:
    """Returns a curve with its points where a run of `num_steps` has them.

    Of a longer run than before the early points lie closer: of those that share a place
    the last is kept.
    """
    steps = curve[0].astype(int)
    points = curve[:, steps > 0]
    places = (steps[steps > 0] - 1) * curve.shape[1] // num_steps
    spread = np.zeros_like(curve)
    spread[:, places] = points
    return spread


def _empty_curve() -> jax.Array:
    """Returns the places of a hundred steps and their losses `[2, 100]`; 0 is none."""
    return jnp.zeros((2, 100))
