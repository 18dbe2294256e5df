"""The guided reverse process: all classes at once, the samples of a class in order."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ot_dd import ot
from ot_dd.diffusion import guidance
from ot_dd.diffusion.process import Prediction, Process
from ot_dd.vma import vary_like

NAMES = ("influence", "deviation", "transport")


class Term(NamedTuple):
    """One guidance term of a run; hashable unless its strength is traced.

    Attributes:
      name: `"influence"`, `"deviation"` or `"transport"`.
      strength: multiplies the (normalised) gradient, a number or a traced scalar;
        at 0 the term steers nothing, but transport still reports its distance.
      window: first and last step index `(low, high)` at which it acts; index
        `num_steps - 1` is the noisiest.
      normalise: see `guidance.normalise`.
      backprop: whether the term needs the denoiser's backward pass.
    """

    name: str
    strength: float | jax.Array
    window: tuple[int, int]
    normalise: str = "raw"
    backprop: bool = False


def _no_pull_back(cotangent):
    raise ValueError(
        "a guidance term goes through the denoiser: it needs backprop=True"
    )


def _check_term(term, steps, transport, influence):
    """Raises a ValueError for a term that cannot be."""
    if term.name not in NAMES:
        raise ValueError(f"guidance term must be one of {NAMES}, found {term.name!r}")
    low, high = term.window
    if not 0 <= low <= high or low >= steps:
        raise ValueError(
            f"guidance term {term.name!r} must have a window (low, high) within "
            f"(0, {steps - 1}), found {term.window}"
        )
    needed = {"transport": transport, "influence": influence}
    if needed.get(term.name, ()) is None:
        raise ValueError(f"guidance term {term.name!r} needs the argument {term.name}")
    if term.name == "transport" and transport.space == "features":
        if transport.embed is None:
            raise ValueError("transport in the space 'features' needs embed")


def sample_classes(
    denoise: Callable[[jax.Array, jax.Array, jax.Array], Prediction],
    process: Process,
    step: Callable[..., jax.Array],
    key: jax.Array,
    classes: jax.Array,
    *,
    latent_shape: tuple[int, ...],
    ipc: int,
    group: int = 1,
    terms: tuple[Term, ...] = (),
    transport: guidance.Transport | None = None,
    influence: Callable[[guidance.Moment], jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Generates `ipc` latents of each class, later ones aware of earlier ones.

    Noise comes from (key, class, index in the class) alone, so the images do not
    depend on how classes are batched or sharded. Steps outside every window run no
    guidance at all (`lax.cond` on the step index). It is to be called inside `jax.jit`:
    outside, every call compiles its loops again.

    Args:
      denoise: `(z [b, ...], i, classes [b]) -> Prediction`.
      process: the noise process; its length is the number of steps.
      step: a sampler, `(process, i, z, prediction, noise) -> z_{i-1}`.
      key: the set's key.
      classes: class numbers `[c]`.
      latent_shape: shape of one latent.
      ipc: latents to make of every class.
      group: how many of a class are made together: 1 is greedy (one by one, the
        papers'), `ipc` is joint.
      terms: guidance terms.
      transport: needed by the term `"transport"`.
      influence: needed by the term `"influence"`: `Moment -> gradient`.

    Returns:
      The latents `[c, ipc, *latent_shape]`; the transport distance at each step of each
      group `[ipc / group, steps, c]`, NaN where the term did not act; and how many
      samples' gradients of each term were not finite, and so were left out
      `[ipc / group, steps, terms, c]`.

    Raises:
      ValueError: for a group that does not divide `ipc`, or terms that are not known,
        act at no step or lack what they need.
    """
    c, n, steps = classes.shape[0], ipc, process.alpha.shape[0]
    if group < 1 or ipc % group:
        raise ValueError(f"group must divide ipc, {ipc}, found {group}")
    for term in terms:
        _check_term(term, steps, transport, influence)
    real_points = 1 if transport is None else transport.real.shape[1]
    slots = 0 if group == ipc else n

    def flat(z):
        """Merges `[c, g, ...]` into a batch for the denoiser."""
        return z.reshape(c * group, *latent_shape)

    def keys_of(first):
        def one(class_key, index):
            return jax.random.fold_in(class_key, first + index)

        class_keys = jax.vmap(lambda k: jax.random.fold_in(key, k))(classes)
        return jax.vmap(lambda k: jax.vmap(lambda j: one(k, j))(jnp.arange(group)))(
            class_keys
        )

    def normal(keys, i):
        def one(k):
            return jax.random.normal(jax.random.fold_in(k, i), latent_shape)

        return jax.vmap(jax.vmap(one))(keys)

    def acts_on(term):
        low, high = term.window
        return set(range(steps)) & set(range(low, high + 1))

    any_acts_on = set().union(*map(acts_on, terms))
    labels = jnp.repeat(classes, group)
    like = classes, () if transport is None else transport[:2]
    unguided = jnp.full((c,), jnp.nan), jnp.zeros((len(terms), c), jnp.int32)
    unguided = vary_like(unguided, like)

    def predict(z, i):
        prediction = jax.tree.map(
            lambda v: v.astype(z.dtype), denoise(flat(z), i, labels)
        )
        return prediction.x0.reshape(z.shape), prediction

    def gradient(term, moment, memory_cost, potentials):
        nan = jnp.full((c,), jnp.nan)
        if term.name == "transport":
            return guidance.transport(moment, transport, memory_cost, potentials)
        own = {"deviation": guidance.deviation, "influence": influence}
        return own[term.name](moment), potentials, nan

    def guided(z, i, noise, memory, filled, memory_cost, potentials):
        if any(term.backprop for term in terms):
            x0, vjp, prediction = jax.vjp(lambda z: predict(z, i), z, has_aux=True)
        else:
            (x0, prediction), vjp = predict(z, i), _no_pull_back
        moment = guidance.Moment(
            z=z,
            x0=x0,
            eps=prediction.eps.reshape(z.shape),
            alpha=process.alpha[i],
            sigma=process.sigma[i],
            memory=memory,
            filled=filled,
            classes=classes,
            pull_back=lambda cotangent: vjp(cotangent)[0],
        )
        moved = step(process, i, flat(z), prediction, flat(noise)).reshape(z.shape)
        distance, left_out = unguided
        for number, term in enumerate(terms):

            def act(operand, term=term, number=number):
                moved, potentials, distance, left_out = operand
                with jax.named_scope(term.name):
                    grad, potentials, value = gradient(
                        term, moment, memory_cost, potentials
                    )
                grad = guidance.normalise(grad, moment, term.normalise)
                axes = tuple(range(2, grad.ndim))
                finite = jnp.isfinite(grad).all(axes)
                grad = jnp.where(jnp.expand_dims(finite, axes), grad, 0.0)
                left_out = left_out.at[number].set(
                    jnp.sum(~finite, axis=1, dtype=left_out.dtype)
                )
                distance = jnp.where(jnp.isnan(value), distance, value)
                return moved - term.strength * grad, potentials, distance, left_out

            low, high = term.window
            operand = (moved, potentials, distance, left_out)
            with jax.named_scope(f"share_{len(acts_on(term))}_{len(any_acts_on)}"):
                operand = jax.lax.cond(
                    (low <= i) & (i <= high), act, lambda operand: operand, operand
                )
            moved, potentials, distance, left_out = operand
        return moved, potentials, (distance, left_out)

    def plain(z, i, noise, memory, filled, memory_cost, potentials):
        _, prediction = predict(z, i)
        moved = step(process, i, flat(z), prediction, flat(noise)).reshape(z.shape)
        return moved, potentials, unguided

    def reverse_step(carry, i):
        z, keys, memory, filled, memory_cost, potentials = carry
        args = (z, i, normal(keys, i), memory, filled, memory_cost, potentials)
        if terms:
            active = [(low <= i) & (i <= high) for _, _, (low, high), *_ in terms]
            on = jnp.any(jnp.stack(active))
            with jax.named_scope(f"share_{len(any_acts_on)}_{steps}"):
                z, potentials, trace = jax.lax.cond(on, guided, plain, *args)
        else:
            z, potentials, trace = plain(*args)
        return (z, keys, memory, filled, memory_cost, potentials), trace

    def one_group(carry, number):
        memory, memory_cost = carry
        first = number * group
        keys = keys_of(first)
        filled = (jnp.arange(slots) < first).astype(jnp.float32)
        potentials = (jnp.zeros((c, slots + group)), jnp.zeros((c, real_points)))
        potentials = vary_like(potentials, like)
        state = (normal(keys, steps), keys, memory, filled, memory_cost, potentials)
        state, trace = jax.lax.scan(reverse_step, state, jnp.arange(steps - 1, -1, -1))
        z = state[0]
        if slots:
            memory = jax.lax.dynamic_update_slice_in_dim(memory, z, first, axis=1)
            if transport is not None:
                rows = jax.vmap(ot.cost_matrix, in_axes=(0, 0, None))(
                    transport.points(z), transport.real, transport.cost_fn
                )
                memory_cost = jax.lax.dynamic_update_slice_in_dim(
                    memory_cost, rows, first, axis=1
                )
        return (memory, memory_cost), (z, trace)

    memory = jnp.zeros((c, slots, *latent_shape))
    memory_cost = jnp.zeros((c, slots, real_points))
    _, (latents, (distances, left_out)) = jax.lax.scan(
        one_group, vary_like((memory, memory_cost), like), jnp.arange(n // group)
    )
    # [groups, c, group, ...] -> [c, ipc, ...]
    latents = jnp.moveaxis(latents, 0, 1).reshape(c, n, *latent_shape)
    return latents, distances, left_out
