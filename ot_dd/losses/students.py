"""Student losses: CE, KL and MSE on logits, batch-level transport of predictions.

Every loss gives one value an example or their mean, and takes a mask `where=` of the
examples that count, as optax's losses do.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ot_dd import ot
from ot_dd.explicit import on_auto_axes

PLANS = ("sinkhorn", "identity")
REDUCTIONS = ("mean", "sum", "none")


def _reduce(values, where, reduction):
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, found {reduction!r}")
    if where is not None:
        values = jnp.where(where, values, 0.0)
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum()
    return values.mean() if where is None else values.sum() / _count(where)


def _kept(logits, where):
    """Returns logits in float32 or wider, zero where an example does not count.

    So that not even a NaN of such an example reaches a gradient.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return logits if where is None else jnp.where(where[:, None], logits, 0.0)


def _count(where):
    return jnp.maximum(jnp.sum(where != 0, dtype=jnp.float32), 1.0)


def _counts(weight) -> bool:
    """Tells whether a term is computed: not where its weight is known to be zero."""
    return isinstance(weight, jax.core.Tracer) or bool(weight)


def _check_logits(student_logits, soft_logits, where=None, temperature=1.0):
    if student_logits.ndim != 2 or student_logits.shape != soft_logits.shape:
        raise ValueError(
            "student_logits and soft_logits must be [n, classes] alike, found "
            f"{student_logits.shape} and {soft_logits.shape}"
        )
    if where is not None and where.shape != student_logits.shape[:1]:
        raise ValueError(
            f"where must be [{student_logits.shape[0]}], found {where.shape}"
        )
    if not isinstance(temperature, jax.core.Tracer) and not float(temperature) > 0:
        raise ValueError(f"temperature must be above 0, found {temperature}")


@on_auto_axes
def logit_matching(
    student_logits: jax.Array,
    soft_logits: jax.Array,
    *,
    temperature: float = 2.0,
    epsilon: float = 0.1,
    num_iters: int = 20,
    plan: str = "sinkhorn",
    grad: str = "unroll",
    groups: int = 1,
    where: jax.Array | None = None,
    reduction: str = "mean",
) -> jax.Array:
    """Returns the Sinkhorn distance between a batch's predictions and soft labels.

    SinKD's batch loss (Cui et al.; `2018cx/SinKD`): with `p = softmax(s / T)` and
    `q = softmax(t / T)`, the cost is `W_ij = |p_i - q_j|_1`, the marginals are
    uniform, and gradients flow through the plan and the cost. The soft labels get
    no gradient. Computed in float32 whatever the logits' type.

    Args:
      student_logits: `[n, classes]`.
      soft_logits: the teachers' logits `[n, classes]`.
      temperature: `T`.
      epsilon: entropic regularisation; the cost lies in `[0, 2]`.
      num_iters: Sinkhorn iterations.
      plan: `"sinkhorn"`, or `"identity"` for the control in which each prediction
        is matched to its own label and nothing is transported.
      grad: see `ot.solve`; `"none"` is for the distance alone.
      groups: consecutive groups of `n / groups` examples, each matched within itself.
        Under data parallelism 1 matches the global batch (devices exchange their
        predictions), the number of devices each device's share (they do not).
      where: mask `[n]` of the examples that take part.
      reduction: `"mean"` (over the examples that count; without `where` mass one in
        every group), `"sum"` (mass n: grows with the batch) or `"none"`: what each
        prediction pays per unit of its mass `[n]`.

    Returns:
      The distance, scalar or `[n]`.

    Raises:
      ValueError: for shapes that disagree, an unknown plan or reduction, or groups
        that do not divide the batch.
    """
    _check_logits(student_logits, soft_logits, where, temperature)
    n = student_logits.shape[0]
    if plan not in PLANS:
        raise ValueError(f"plan must be one of {PLANS}, found {plan!r}")
    if groups < 1 or n % groups:
        raise ValueError(f"groups must divide the batch of {n}, found {groups}")
    p, q = (
        jax.nn.softmax(_kept(v, where) / temperature)
        for v in (student_logits, soft_logits)
    )
    q = jax.lax.stop_gradient(q)
    if grad == "none":
        p = jax.lax.stop_gradient(p)
    if plan == "identity":
        return _reduce(jnp.abs(p - q).sum(-1), where, reduction)
    # The cost lies in [0, 2]: float32 kernels hold it down to here.
    traced = isinstance(epsilon, jax.core.Tracer)
    method = "kernel" if not traced and float(epsilon) >= 0.05 else "log"
    mask = None if where is None else where.astype(p.dtype)

    def paid(p, q, mask):
        weights = None if mask is None else mask / jnp.maximum(mask.sum(), 1.0)
        cost = ot.cost_matrix(p, q, "l1")
        result = ot.solve(
            cost, weights, weights, epsilon=epsilon, num_iters=num_iters, grad=grad,
            method=method,
        )  # fmt: skip
        held = result.plan if grad == "unroll" else jax.lax.stop_gradient(result.plan)
        share = 1 / len(p) if mask is None else jnp.where(mask > 0, weights, 1.0)
        return jnp.sum(held * cost, axis=1) / share

    # None has no leaves: it stays None.
    split = jax.tree.map(
        lambda v: v.reshape(groups, n // groups, *v.shape[1:]), (p, q, mask)
    )
    values = jax.vmap(paid)(*split).reshape(n)
    return _reduce(values, where, reduction)


@on_auto_axes
def soft_label_kl(
    student_logits: jax.Array,
    soft_logits: jax.Array,
    *,
    temperature: float = 1.0,
    where: jax.Array | None = None,
    reduction: str = "mean",
) -> jax.Array:
    """Returns `T^2 KL(softmax(t / T) | softmax(s / T))` (Hinton et al. 2015).

    Args:
      student_logits: `[n, classes]`.
      soft_logits: the teachers' logits `[n, classes]`; they get no gradient.
      temperature: `T`.
      where: mask `[n]` of the examples that count.
      reduction: `"mean"`, `"sum"` or `"none"`.

    Returns:
      The divergence in nats, scalar or `[n]`.

    Raises:
      ValueError: for shapes that disagree or an unknown reduction.
    """
    _check_logits(student_logits, soft_logits, where, temperature)
    soft_logits = jax.lax.stop_gradient(soft_logits)
    log_p, log_q = (
        jax.nn.log_softmax(_kept(v, where) / temperature)
        for v in (student_logits, soft_logits)
    )
    # A class that the teachers rule out, of logit -inf, costs nothing.
    ratio = jnp.where(log_q > -jnp.inf, log_q - log_p, 0.0)
    values = temperature**2 * jnp.sum(jnp.exp(log_q) * ratio, axis=-1)
    return _reduce(values, where, reduction)


@on_auto_axes
def logit_mse(
    student_logits: jax.Array,
    soft_logits: jax.Array,
    *,
    where: jax.Array | None = None,
    reduction: str = "mean",
) -> jax.Array:
    """Returns the squared error between logits, averaged over the classes.

    Args:
      student_logits: `[n, classes]`.
      soft_logits: the teachers' logits `[n, classes]`; they get no gradient.
      where: mask `[n]` of the examples that count.
      reduction: `"mean"`, `"sum"` or `"none"`.

    Returns:
      The error, scalar or `[n]`.

    Raises:
      ValueError: for shapes that disagree or an unknown reduction.
    """
    _check_logits(student_logits, soft_logits, where)
    soft_logits = jax.lax.stop_gradient(soft_logits)
    student_logits, soft_logits = (
        _kept(v, where) for v in (student_logits, soft_logits)
    )
    values = jnp.mean(jnp.square(student_logits - soft_logits), axis=-1)
    return _reduce(values, where, reduction)


@on_auto_axes
def student_loss(
    student_logits: jax.Array,
    soft_logits: jax.Array,
    labels: jax.Array,
    *,
    ce_weight: float = 0.025,
    mse_weight: float = 1.0,
    ot_weight: float = 0.1,
    kl_weight: float = 0.0,
    kl_temperature: float = 20.0,
    where: jax.Array | None = None,
    reduction: str = "mean",
    **matching: Any,
) -> jax.Array:
    """Returns `kappa_1 CE + kappa_2 MSE + beta_2 OT + kl_weight KL`.

    The student's training loss. The first terms follow EDC (Shao et al., NeurIPS 2024:
    `mse_gt`, with 0.025 and 1) and SinKD; under CutMix the cross-entropy keeps the
    un-mixed label, as EDC does. The last one is for recipes that distil by KL, as
    RDED's (Sun et al., CVPR 2024) at temperature 20.

    Args:
      student_logits: `[n, classes]`.
      soft_logits: the teachers' logits `[n, classes]`.
      labels: hard labels `[n]`.
      ce_weight: weight of the cross-entropy with the hard labels.
      mse_weight: weight of the mean squared error over batch and classes.
      ot_weight: weight of `logit_matching` in its mean form.
      kl_weight: weight of `soft_label_kl`.
      kl_temperature: its temperature.
      where: mask `[n]` of the examples that count.
      reduction: `"mean"`, `"sum"` or `"none"`.
      **matching: keywords of `logit_matching`.

    Returns:
      The loss, scalar or `[n]`. A term of weight zero is not computed; weights may be
      traced.

    Raises:
      ValueError: for shapes that disagree or unknown names.
    """
    if np.shape(labels) != student_logits.shape[:1]:
        raise ValueError(
            f"labels must be [{student_logits.shape[0]}], found {np.shape(labels)}"
        )
    options = {"where": where, "reduction": reduction}
    student_logits = _kept(student_logits, where)
    loss = _reduce(jnp.zeros(len(student_logits), student_logits.dtype), **options)
    if _counts(ce_weight):
        ce = optax.softmax_cross_entropy_with_integer_labels(student_logits, labels)
        loss += ce_weight * _reduce(ce, **options)
    if _counts(mse_weight):
        loss += mse_weight * logit_mse(student_logits, soft_logits, **options)
    if _counts(ot_weight):
        matching = options | matching
        loss += ot_weight * logit_matching(student_logits, soft_logits, **matching)
    if _counts(kl_weight):
        options = options | {"temperature": kl_temperature}
        loss += kl_weight * soft_label_kl(student_logits, soft_logits, **options)
    return loss
