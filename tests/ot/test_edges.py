"""Corners of problems: nothing to move, far away, forbidden, given wrongly."""

import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ott.geometry import costs
from scipy import optimize

from ot_dd import losses, ot
from ot_dd.losses import gradient_cosine_distance, transport_guidance
from ot_dd.ot._iterations import Options


def clouds(n=6, m=8, d=3):
    x = jax.random.normal(jax.random.key(0), (n, d))
    return x, jax.random.normal(jax.random.key(1), (m, d)) + 0.5


@pytest.mark.parametrize("method", ["log", "auto", "kernel"])
@pytest.mark.parametrize("grad", ["envelope", "unroll"])
@pytest.mark.parametrize("block_size", [None, 2])
@pytest.mark.parametrize("empty", ["a", "b", "both"])
def test_an_empty_measure_has_finite_gradients(method, grad, block_size, empty):
    x, y = clouds()
    a = jnp.zeros(6) if empty in ("a", "both") else jnp.full(6, 1 / 6)
    b = jnp.zeros(8) if empty in ("b", "both") else jnp.full(8, 1 / 8)

    @jax.jit
    @jax.value_and_grad
    def value(x, y, a, b):
        return ot.solve_sample(
            x, y, a, b, epsilon=0.5, num_iters=12, method=method, grad=grad,
            block_size=block_size,
        ).value  # fmt: skip

    found, gradient = value(x, y, a, b)
    assert np.isfinite(found) and np.isfinite(gradient).all()


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_masked_groups_have_no_gradient(groups):
    s, t = np.random.default_rng(0).normal(size=(2, 8, 5)).astype("f4")
    mask = jnp.arange(8) < 4

    def loss(s):
        return losses.student_loss(s, t, jnp.zeros(8, int), groups=groups, where=mask)

    gradient = jax.grad(loss)(s)
    assert np.isfinite(gradient).all() and (gradient[4:] == 0).all()
    assert (jnp.abs(gradient[:4]).sum(1) > 0).all()


def test_a_forbidden_pair_is_not_used():
    x, y = clouds()
    cost = ot.cost_matrix(x, y, "sqeuclidean").at[0, 0].set(jnp.inf)
    result = jax.jit(lambda c: ot.solve(c, epsilon=0.5, num_iters=200))(cost)
    assert result.converged and np.isfinite(result.value_linear)
    assert result.plan[0, 0] == 0
    large = ot.solve(cost.at[0, 0].set(1e4), epsilon=0.5, num_iters=200)
    np.testing.assert_allclose(result.value_linear, large.value_linear, rtol=1e-5)


@pytest.mark.parametrize("offset", [0.0, 100.0, 1000.0])
def test_clouds_far_from_the_origin_keep_their_distances(offset):
    x, y = clouds(40, 50)
    far = ot.cost_matrix(x + offset, y + offset, "sqeuclidean")
    rounded = np.float64(x + offset)[:, None] - np.float64(y + offset)[None]
    np.testing.assert_allclose(far, (rounded**2).sum(-1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("block_size", [None, 8])
@pytest.mark.parametrize(
    ("offset", "padding"), [(0.0, 1e6), (0.0, 1e20), (1000.0, 0.0)]
)
def test_where_points_of_zero_weight_lie_does_not_matter(offset, padding, block_size):
    rng = np.random.default_rng(0)
    x, y = (offset + rng.normal(size=(n, 2)) for n in (30, 40))
    padded = [np.r_[v, np.full((9, 2), padding)].astype("f4") for v in (x, y)]
    weights = [np.r_[np.full(len(v), 1 / len(v)), np.zeros(9)] for v in (x, y)]
    options = {"epsilon": 0.1, "num_iters": 100, "block_size": block_size}
    alone = ot.solve_sample(x.astype("f4"), y.astype("f4"), **options)

    def value(x):
        return ot.solve_sample(x, padded[1], *weights, **options).value

    found, gradient = jax.value_and_grad(value)(padded[0])
    np.testing.assert_allclose(found, alone.value, rtol=1e-3)
    assert (gradient[30:] == 0).all() and np.isfinite(gradient).all()


@pytest.mark.parametrize("block_size", [None, 4])
@pytest.mark.parametrize("grad", ["envelope", "unroll"])
def test_points_of_zero_weight_make_no_pair_without_a_derivative(grad, block_size):
    """A distance has none between equal points: such a pair is in neither cloud."""
    x, y = (np.random.default_rng(i).normal(size=(6, 2)).astype("f4") for i in (0, 1))

    def value(clouds, a, b):
        return ot.solve_sample(
            *clouds, a, b, cost_fn=lambda p, q: jnp.linalg.norm(p - q), epsilon=0.3,
            num_iters=50, grad=grad, block_size=block_size,
        ).value  # fmt: skip

    some, all_of_them = jnp.array([1, 1, 1, 1, 0, 0]) / 4.0, jnp.full(4, 0.25)
    for masked in (True, False), (False, True), (True, True):
        cut = tuple(v[:4] if m else v for v, m in zip((x, y), masked))
        found = jax.grad(value)((x, y), *(some if m else None for m in masked))
        wanted = jax.grad(value)(cut, *(all_of_them if m else None for m in masked))
        for one, other in zip(found, wanted):
            np.testing.assert_allclose(one[: len(other)], other, atol=1e-6)
            np.testing.assert_array_equal(one[len(other) :], 0.0)


def test_a_divergence_has_one_penalty():
    x = jnp.ones((3, 2))
    with pytest.raises(ValueError, match=r"must be equal, found \(1.0, 0.7\)"):
        ot.sinkhorn_divergence(x, x, epsilon=1.0, tau_b=0.7)
    with pytest.raises(ValueError, match="solver must be 'sinkhorn'"):
        ot.sinkhorn_divergence(x, x, epsilon=1.0, tau_a=0.7, tau_b=0.7, solver="ott")


def test_bfloat16_points_with_a_cost_of_ott():
    x, y = jax.random.normal(jax.random.key(0), (2, 6, 2), jnp.bfloat16)
    options = {"cost_fn": costs.SqEuclidean(), "epsilon": 0.5, "num_iters": 200}
    theirs = ot.solve_sample(x, y, solver="ott", **options)
    np.testing.assert_allclose(
        theirs.value, ot.solve_sample(x, y, **options).value, rtol=1e-3
    )


def test_the_cosine_of_a_zero_vector_has_no_gradient():
    x, y = clouds()
    x = x.at[2].set(0.0)
    gradient = jax.grad(lambda x: ot.cost_matrix(x, y, "cosine").sum())(x)
    assert jnp.abs(gradient).max() < 100 and (gradient[2] == 0).all()


def test_a_plan_has_a_gradient_only_when_unrolled():
    x, y = clouds()
    cost = ot.cost_matrix(x, y, "sqeuclidean")

    def total(cost, grad):
        return (ot.solve(cost, epsilon=0.5, num_iters=60, grad=grad).plan * cost).sum()

    # With the plan held, d<P, C> = P dC.
    plan = ot.solve(cost, epsilon=0.5, num_iters=60).plan
    np.testing.assert_allclose(jax.grad(total)(cost, "envelope"), plan, rtol=1e-5)
    with jax.enable_x64(True):
        wide = jnp.asarray(np.float64(cost))
        step = 1e-6 * jax.random.normal(jax.random.key(2), cost.shape, jnp.float64)
        numeric = (total(wide + step, "unroll") - total(wide - step, "unroll")) / 2
        gradient = jax.grad(total)(wide, "unroll")
        np.testing.assert_allclose(jnp.vdot(gradient, step), numeric, rtol=1e-6)


def test_no_gradient_means_none_at_all():
    x, y = clouds()

    def value(x, epsilon):
        return ot.solve_sample(x, y, epsilon=epsilon, num_iters=9, grad="none").value

    gradients = jax.grad(value, (0, 1))(x, jnp.float32(0.5))
    assert all((g == 0).all() for g in gradients)


def test_unbalanced_divergence_of_one_cloud_with_two_masses():
    x, _ = clouds(40)
    a = jnp.full(40, 1 / 40)
    options = {"epsilon": 2.0, "tau_a": 0.5, "tau_b": 0.5, "num_iters": 200}
    same = ot.sinkhorn_divergence(x, x, a, a, **options)
    more = ot.sinkhorn_divergence(x, x, 2 * a, a, **options)
    np.testing.assert_allclose(same, 0.0, atol=1e-5)
    assert more > 0.1
    with pytest.raises(ValueError, match="init must be None"):
        ot.sinkhorn_divergence(x, x, epsilon=1.0, init=(a, a))


def test_a_divergence_has_the_defaults_of_a_solve():
    known = inspect.signature(ot.solve_sample).parameters
    for name, value in Options._field_defaults.items():
        if name not in ("masked", "of_product"):
            assert known[name].default == value, name


@pytest.mark.parametrize("tau", [1.0, 0.8])
def test_a_divergence_of_heavy_clouds_keeps_its_digits(tau):
    """The product of the masses, 1e14, is in each of the three values."""
    x, y = clouds(30)
    more = 1.0 if tau == 1.0 else 1.1

    def divergence(a, dtype):
        points = np.asarray(x, dtype), np.asarray(y, dtype)
        return ot.sinkhorn_divergence(
            *points, a, np.full(8, more * 1e7 / 8, dtype), epsilon=0.5, num_iters=300,
            tau_a=tau, tau_b=tau,
        )  # fmt: skip

    a = np.random.default_rng(0).uniform(0.5, 1.5, 30)
    a *= 1e7 / a.sum()
    found = jax.value_and_grad(divergence)(a.astype("f4"), "f4")
    with jax.enable_x64(True):
        expected = jax.value_and_grad(divergence)(a, "f8")
    for ours, theirs in zip(found, expected):
        assert theirs.dtype == np.float64
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-9])
def test_gradient_matching_does_not_depend_on_the_gradients_size(size):
    images, labels = jnp.ones((2, 3)), jnp.zeros(2, int)

    def loss(params, images, labels):
        return size * jnp.sum(params["w"] * images)

    params, target = {"w": jnp.ones((2, 3))}, size * jnp.ones(6)
    found = gradient_cosine_distance(loss, params, images, labels, target)
    np.testing.assert_allclose(found, 0.0, atol=1e-5)


@pytest.mark.parametrize("margin", [10.0, 35.0, 60.0, 120.0])
def test_gradient_matching_of_a_model_that_is_sure_of_its_classes(margin):
    """Its gradients lie near the end of float32's range, or are zero."""
    labels, target = jnp.array([0]), jnp.arange(6.0)
    params = {"w": margin * jnp.eye(3, 2)}

    def loss(params, images, labels):
        logits = images @ params["w"]
        return -jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels].mean()

    def distance(images):
        return gradient_cosine_distance(loss, params, images, labels, target)

    found, gradient = jax.value_and_grad(distance)(jnp.array([[1.0, 0.0, 0.5]]))
    assert jnp.isfinite(found) and jnp.isfinite(gradient).all()
    if margin == 120.0:
        assert found == 1.0 and not gradient.any()


def test_guidance_of_identical_points_is_finite():
    points = jnp.ones((2, 4))

    @jax.jit
    def guide(points):
        return transport_guidance(
            points, jnp.ones((3, 4)), jnp.full(3, 1 / 3),
            memory_cost=jnp.zeros((0, 3)), filled=jnp.zeros(0),
            cost_fn="sqeuclidean", epsilon_unit="mean_cost",
        )[0]  # fmt: skip

    assert np.isfinite(guide(points)).all()


@pytest.mark.parametrize("cost_fn", ["sqeuclidean", "l1"])
@pytest.mark.parametrize("block_size", [None, 2, 1024])
def test_clouds_of_two_types(cost_fn, block_size):
    with jax.enable_x64(True):
        x, y = clouds()
        y = jnp.asarray(np.float64(y))
        result = ot.solve_sample(
            x, y, cost_fn=cost_fn, epsilon=0.5, num_iters=9, block_size=block_size
        )
        assert result.value.dtype == jnp.float64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": jnp.ones(3)}, "epsilon must be a scalar"),
        ({"epsilon": jnp.inf}, "epsilon must be positive and finite"),
        ({"epsilon": 1.0, "threshold": float("nan")}, "threshold"),
        ({"epsilon": 1.0, "threshold": jnp.ones(())}, "threshold"),
        ({"epsilon": 1.0, "init": (jnp.zeros(6), jnp.zeros(7))}, "init"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ot.solve_sample(*clouds(), **options)


def test_lists_and_numpy_integers_are_taken():
    x, y = clouds()
    weights = [1 / 6] * 6
    listed = ot.solve_sample(x, y, weights, epsilon=1.0, num_iters=np.int64(5))
    plain = ot.solve_sample(x, y, epsilon=1.0, num_iters=5)
    np.testing.assert_allclose(listed.value, plain.value, rtol=1e-5)


def test_numpy_numbers_and_float64_costs_are_taken():
    x, y = clouds()
    cost = np.abs(np.asarray(x, np.float64)[:, None] - np.asarray(y)[None]).sum(-1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ot.solve(cost, epsilon=1.0, threshold=np.float32(1e-3))
    blocked = ot.solve_sample(x, y, epsilon=1.0, num_iters=5, block_size=np.int64(2))
    plain = ot.solve_sample(x, y, epsilon=1.0, num_iters=5)
    np.testing.assert_allclose(blocked.value, plain.value, rtol=1e-5)
    heavy = [1 / 4] * 6
    options = {"epsilon": 1.0, "tau_a": 0.5, "tau_b": 0.5, "num_iters": 50}
    listed = ot.sinkhorn_divergence(x, y, heavy, **options)
    array = ot.sinkhorn_divergence(x, y, jnp.asarray(heavy), **options)
    np.testing.assert_allclose(listed, array, rtol=1e-5)


def test_losses_of_bfloat16_logits_are_float32():
    s, t = np.random.default_rng(0).normal(size=(2, 16, 10)).astype("f4")
    narrow = [jnp.asarray(v, jnp.bfloat16) for v in (s, t)]
    wide = [v.astype(jnp.float32) for v in narrow]
    labels = jnp.zeros(16, int)
    for loss in (losses.soft_label_kl, losses.logit_mse):
        assert loss(*narrow).dtype == jnp.float32
        np.testing.assert_allclose(loss(*narrow), loss(*wide), rtol=1e-6)
    options = {"ot_weight": 0.0}
    np.testing.assert_allclose(
        losses.student_loss(*narrow, labels, **options),
        losses.student_loss(*wide, labels, **options),
        rtol=1e-6,
    )


@pytest.mark.parametrize("forbidden", [1e5, 1e7, 1e9, 1e12])
def test_exact_with_pairs_that_are_as_good_as_forbidden(forbidden):
    rng = np.random.default_rng(0)
    cost, unused = rng.uniform(size=(12, 12)), rng.uniform(size=(12, 12)) < 0.15
    a, b = rng.dirichlet(np.ones(12), size=2)
    bounds = [(0, 0 if no else None) for no in unused.ravel()]
    marginals = np.concatenate([np.kron(np.eye(12), np.ones(12)),
                                np.kron(np.ones(12), np.eye(12))])  # fmt: skip
    plan = optimize.linprog(
        cost.ravel(), A_eq=marginals, b_eq=np.concatenate([a, b]), bounds=bounds
    )
    assert plan.status == 0
    found = ot.exact(np.where(unused, forbidden, cost), a, b)
    np.testing.assert_allclose(found, plan.fun, rtol=1e-6)
    # Where they have to be used they are paid for.
    np.testing.assert_allclose(
        ot.exact(np.where(np.eye(12) > 0, cost, forbidden), a, b),
        forbidden * (1 - np.minimum(a, b).sum()),
        rtol=1e-4,
    )


def test_small_masses_that_differ_are_refused():
    for solve in (ot.exact, lambda *args: ot.solve(*args, epsilon=0.1)):
        with pytest.raises(ValueError, match="mass"):
            solve(np.ones((2, 2)), np.array([1e-9, 1e-9]), np.array([5e-9, 1e-9]))


def test_exact_refuses_what_has_no_plan():
    with pytest.raises(ValueError, match="no plan"):
        ot.exact(np.ones((2, 2)), [1.5, -0.5], [0.5, 0.5])
    with pytest.raises(ValueError, match="points on both sides"):
        ot.exact(np.ones((0, 2)))
    with pytest.raises(ValueError, match=r"must be \[n, m\]"):
        ot.exact(np.ones(3))
    with pytest.raises(ValueError, match="masses 0, 0"):
        ot.exact(np.ones((2, 2)), np.zeros(2), np.zeros(2))
    with pytest.raises(ValueError, match="cost must be finite"):
        ot.exact([[0.0, np.nan]])


@pytest.mark.parametrize("epsilon", [0.1, 0.01])
def test_a_kernel_out_of_range_has_finite_gradients(epsilon):
    """Unrolled, a kernel that leaves its range holds the last state that was safe."""
    x, y = clouds(40, 50, 3)

    def value(x, method):
        return ot.solve_sample(
            x, y, epsilon=epsilon, num_iters=60, grad="unroll", method=method
        ).value

    gradient = jax.grad(value)(x, "kernel")
    assert jnp.isfinite(gradient).all()
    if epsilon == 0.1:  # In range with a new kernel every 40 iterations.
        np.testing.assert_allclose(gradient, jax.grad(value)(x, "log"), atol=1e-4)


def test_a_kernel_is_made_anew_where_it_leaves_its_range():
    """Potentials move by more than one kernel holds; `n_iters` counts what was run."""
    x, y = clouds(40, 50, 3)
    options = {"epsilon": 0.05, "num_iters": 200}
    kernel, log = (
        ot.solve_sample(x, y, method=method, **options) for method in ("kernel", "log")
    )
    np.testing.assert_allclose(kernel.value, log.value, rtol=1e-4)
    assert kernel.n_iters == log.n_iters == 200


def test_held_potentials_have_no_gradient_in_epsilon():
    x, y = clouds(40, 50, 3)

    def total(epsilon):
        return ot.solve_sample(x, y, epsilon=epsilon, num_iters=50).potentials[0].sum()

    assert jax.grad(total)(0.3) == 0


@pytest.mark.parametrize("method", ["log", "kernel", "auto"])
def test_strict_promotion_of_types(method):
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=(n, 4)), jnp.float32) for n in (9, 12))

    def divergence(x, **options):
        return ot.sinkhorn_divergence(x, y, epsilon=0.5, method=method, **options)

    with jax.numpy_dtype_promotion("strict"):
        jax.grad(divergence)(x)
        jax.grad(lambda x: divergence(x, block_size=4, tau_a=0.9, tau_b=0.9))(x)
        jax.grad(lambda x: divergence(x, grad="unroll", num_iters=4))(x)
        jax.grad(losses.student_loss)(x, y[:9], jnp.zeros(9, int))
