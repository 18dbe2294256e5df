"""The solver's promises: methods agree, stay finite, differentiate, batch, block."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ot_dd import ot


def clouds(n, m, d, seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)), rng.normal(size=(m, d)) + 0.5
    return jnp.asarray(x, dtype), jnp.asarray(y, dtype)


def agree(found, expected, rtol=1e-5, atol=0.0):
    scale = float(jnp.abs(expected).max()) + 1e-12
    np.testing.assert_allclose(found, expected, rtol=0, atol=rtol * scale + atol)


@pytest.mark.parametrize("tau", [1.0, 0.8])
@pytest.mark.parametrize("block_size", [None, 16])
def test_fast_iterations_are_those_of_the_log_domain(tau, block_size):
    x, y = clouds(60, 45, 8)
    a = jnp.linspace(0.5, 1.5, 60) / 60
    a = a.at[3].set(0.0) / a.at[3].set(0.0).sum()
    mean = float(ot.cost_matrix(x, y, "sqeuclidean").mean())
    options = {"num_iters": 57, "tau_a": tau}
    for share in (1.0, 0.05, 0.005):
        expected = ot.solve_sample(
            x, y, a, epsilon=share * mean, method="log", **options
        )
        found = ot.solve_sample(
            x, y, a, epsilon=share * mean, block_size=block_size, **options
        )
        same(found, expected)


def same(found, expected):
    agree(found.potentials[0], expected.potentials[0])
    agree(found.potentials[1], expected.potentials[1])
    agree(found.plan, expected.plan, 1e-3)
    np.testing.assert_allclose(found.value, expected.value, rtol=1e-5)
    np.testing.assert_allclose(found.value_linear, expected.value_linear, rtol=1e-4)
    np.testing.assert_allclose(
        found.marginal_error, expected.marginal_error, rtol=2e-2, atol=1e-5
    )


def test_kernel_where_it_is_safe_and_where_it_says_it_is_not():
    x, y = clouds(40, 30, 4)
    cost = ot.cost_matrix(x, y, "sqeuclidean")
    options = {"epsilon": 0.05 * float(cost.mean()), "num_iters": 400}
    kernel = ot.solve(cost, method="kernel", **options)
    log = ot.solve(cost, method="log", **options)
    agree(kernel.potentials[0], log.potentials[0])
    assert bool(kernel.converged)
    # From zero potentials to an optimum thousands of epsilons away.
    far = ot.solve(cost, epsilon=1e-5 * float(cost.mean()), num_iters=50,
                   method="kernel")  # fmt: skip
    assert np.isfinite(far.value) and not bool(far.converged)


HARD = {
    "raw l1 between latents": lambda: (clouds(6, 9, 4096), "l1"),
    "constant cost": lambda: ((jnp.zeros((5, 3)), jnp.ones((7, 3))), "sqeuclidean"),
    "one point": lambda: (clouds(1, 1, 3), "sqeuclidean"),
    "one against many": lambda: (clouds(1, 12, 3), "sqeuclidean"),
    "duplicates": lambda: (
        (jnp.repeat(clouds(4, 4, 3)[0], 5, axis=0), clouds(4, 9, 3)[1]),
        "sqeuclidean",
    ),
    "far cluster": lambda: (
        (jnp.concatenate([clouds(5, 5, 2)[0], 1e3 + clouds(5, 5, 2)[0]]),
         clouds(5, 10, 2)[1]),
        "sqeuclidean",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("block_size", [None, 4])
def test_auto_is_finite_wherever_log_is(name, block_size):
    (x, y), cost_fn = HARD[name]()
    mean = float(ot.cost_matrix(x, y, cost_fn).mean())

    def value(x, epsilon, method, block_size):
        result = ot.solve_sample(
            x, y, method=method, block_size=block_size, epsilon=epsilon,
            num_iters=100, cost_fn=cost_fn,
        )  # fmt: skip
        return result.value, (result, result.plan)

    function = jax.jit(jax.grad(value, has_aux=True), static_argnums=(2, 3))
    for share in (1e-1, 1e-2, 1e-3, 1e-4):
        _, (log, _) = function(x, share * mean, "log", None)
        gradient, (auto, plan) = function(x, share * mean, "auto", block_size)
        for leaf in jax.tree.leaves((gradient, auto, plan)):
            assert np.isfinite(leaf).all()
        np.testing.assert_allclose(auto.value, log.value, rtol=1e-3, atol=1e-4 * mean)


def test_a_measure_without_mass_stays_finite():
    x, y = clouds(5, 6, 3)
    zero = jnp.zeros(6)
    result = jax.jit(lambda b: ot.solve_sample(x, y, None, b, epsilon=1.0))(zero)
    for leaf in jax.tree.leaves((result, result.plan)):
        assert np.isfinite(leaf).all()
    assert not bool(result.converged)


def test_nan_is_never_called_converged():
    cost = jnp.full((3, 3), jnp.nan)
    result = jax.jit(lambda c: ot.solve(c, epsilon=1.0, num_iters=5))(cost)
    assert not bool(result.converged)


def test_threshold_stops_and_reports():
    x, y = clouds(50, 40, 5)
    options = {"epsilon": 0.5, "threshold": 1e-4}
    for block_size in (None, 10):
        for method in ("log", "kernel", "auto"):
            result = ot.solve_sample(
                x, y, block_size=block_size, method=method, **options
            )
            assert bool(result.converged)
            assert float(result.marginal_error) <= 1e-4
            assert 5 < int(result.n_iters) < 1000
            error = jnp.abs(result.plan.sum(1) - 1 / 50).sum()
            error += jnp.abs(result.plan.sum(0) - 1 / 40).sum()
            np.testing.assert_allclose(result.marginal_error, error, atol=2e-6)
    short = ot.solve_sample(x, y, epsilon=0.01, threshold=1e-6, max_iters=7)
    assert int(short.n_iters) == 7 and not bool(short.converged)


def test_unbalanced_value_is_the_primal_objective():
    x, y = clouds(20, 25, 3)
    tau, epsilon = 0.7, 0.5
    result = ot.solve_sample(
        x, y, epsilon=epsilon, tau_a=tau, tau_b=tau, threshold=1e-6, max_iters=5000
    )
    assert bool(result.converged)
    plan = np.asarray(result.plan, np.float64)
    assert 0.1 < plan.sum() < 0.9
    cost = np.asarray(ot.cost_matrix(x, y, "sqeuclidean"), np.float64)

    def kl(p, q):
        return np.sum(p * np.log(p / q) - p + q)

    rho = epsilon * tau / (1 - tau)
    primal = (plan * cost).sum() + epsilon * kl(plan, 1 / 500)
    primal += rho * (kl(plan.sum(1), 1 / 20) + kl(plan.sum(0), 1 / 25))
    np.testing.assert_allclose(result.value, primal, rtol=1e-5)


@pytest.mark.parametrize("block_size", [None, 5])
@pytest.mark.parametrize("grad", ["envelope", "unroll"])
@pytest.mark.parametrize("tau", [1.0, 0.7])
def test_gradients_in_points_and_weights(block_size, grad, tau):
    with jax.enable_x64(True):
        x, y = clouds(12, 17, 3, dtype=jnp.float64)
        a = jnp.linspace(1.0, 2.0, 12) / 18

        def value(x, y, a):
            return ot.solve_sample(
                x, y, a, epsilon=0.4, num_iters=300, grad=grad, tau_a=tau, tau_b=tau,
                block_size=block_size,
            ).value  # fmt: skip

        rng = np.random.default_rng(0)
        gradients = jax.grad(value, argnums=(0, 1, 2))(x, y, a)
        for which, gradient in enumerate(gradients):
            direction = rng.normal(size=gradient.shape)
            direction -= direction.mean() if which == 2 else 0.0  # mass stays one
            arguments = [x, y, a]
            sides = []
            for h in (1e-5, -1e-5):
                moved = list(arguments)
                moved[which] = moved[which] + h * direction
                sides.append(value(*moved))
            numeric = (sides[0] - sides[1]) / 2e-5
            np.testing.assert_allclose(
                jnp.vdot(gradient, direction), numeric, rtol=1e-5, atol=1e-8
            )


@pytest.mark.parametrize(
    ("grad", "num_iters", "field"),
    [
        ("envelope", 300, "value"),
        ("unroll", 5, "value"),
        ("unroll", 30, "value_linear"),
    ],
)
def test_gradient_agrees_with_ott(grad, num_iters, field):
    x, y = clouds(30, 20, 4)

    def value(x, solver):
        result = ot.solve_sample(
            x, y, epsilon=0.5, num_iters=num_iters, grad=grad, solver=solver
        )
        return getattr(result, field)

    agree(jax.grad(value)(x, "sinkhorn"), jax.grad(value)(x, "ott"), 1e-4)


def test_ott_says_how_far_an_unbalanced_problem_is():
    x, y = clouds(30, 20, 4)
    tau = {"tau_a": 0.6, "tau_b": 0.8, "solver": "ott"}
    done = ot.solve_sample(x, y, epsilon=0.5, num_iters=300, **tau)
    assert bool(done.converged) and done.marginal_error < 1e-3
    until = ot.solve_sample(x, y, epsilon=0.5, threshold=1e-3, **tau)
    assert until.marginal_error < 1e-2
    begun = ot.solve_sample(x, y, epsilon=0.5, num_iters=1, **tau)
    assert not bool(begun.converged) and begun.marginal_error > 1e-2


def test_kernel_unrolls_to_the_gradient_of_the_log_domain():
    x, y = clouds(15, 10, 4)

    def linear(x, method):
        return ot.solve_sample(
            x, y, epsilon=0.7, num_iters=25, grad="unroll", method=method
        ).value_linear

    agree(jax.grad(linear)(x, "kernel"), jax.grad(linear)(x, "log"), 1e-4)


def temporaries(function, *arguments):
    compiled = jax.jit(function).lower(*arguments).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_an_unrolled_solve_in_blocks_holds_no_matrix():
    x = jax.ShapeDtypeStruct((4000, 4), jnp.float32)

    def value(x, y):
        return ot.solve_sample(
            x, y, epsilon=0.1, num_iters=5, block_size=50, grad="unroll",
            method="kernel",
        ).value  # fmt: skip

    assert temporaries(jax.grad(value), x, x) < 0.1 * 4 * 4000**2


def test_l1_gradient_holds_no_signs():
    n, m, d = 32, 256, 2048
    x, y = clouds(n, m, d)

    def value(x, y):
        return ot.solve_sample(x, y, cost_fn="l1", epsilon=50.0, num_iters=5).value

    used = temporaries(jax.grad(value, argnums=(0, 1)), x, y)
    assert used < n * m * d / 2  # bytes: the signs as booleans would need n m d
    expected = jax.grad(
        lambda x: jnp.sum(jnp.abs(x[:, None] - y[None]).sum(-1) ** 2), 0
    )(x[:4])
    found = jax.grad(lambda x: jnp.sum(ot.cost_matrix(x, y, "l1") ** 2))(x[:4])
    agree(found, expected, 1e-5)


def test_memory_of_blocks_is_linear():
    block, d = 64, 16
    sizes = []
    for n in (4096, 8192):
        x, y = clouds(n, n, d)

        def both(x, y):
            return jax.value_and_grad(
                lambda x, y: (
                    ot.solve_sample(
                        x, y, epsilon=1.0, num_iters=20, block_size=block
                    ).value
                ),
                argnums=(0, 1),
            )(x, y)

        sizes.append(temporaries(both, x, y))
    assert sizes[0] < 4096 * 4096 * 4 / 4
    assert sizes[1] < 2.2 * sizes[0]


def test_unrolled_memory_grows_by_vectors():
    x, y = clouds(1024, 1024, 4)

    def value(x, num_iters):
        return ot.solve_sample(
            x, y, epsilon=1.0, num_iters=num_iters, grad="unroll"
        ).value_linear

    few, many = (
        temporaries(jax.grad(lambda x, k=k: value(x, k)), x) for k in (20, 120)
    )
    # An iteration keeps some twenty vectors: a matrix would be 1,024 of them.
    assert many - few < 100 * (1024 * 4) * 30


def test_ragged_classes_under_vmap():
    classes, n, m, d = 5, 7, 20, 3
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(classes, n, d)), jnp.float32)
    y = jnp.asarray(rng.normal(size=(classes, m, d)), jnp.float32)
    counts = rng.integers(4, m + 1, size=classes)
    b = jnp.asarray(np.arange(m) < counts[:, None], jnp.float32)
    b = b / b.sum(1, keepdims=True)

    def value(x, y, b, block_size):
        result = ot.solve_sample(
            x, y, None, b, epsilon=0.3, num_iters=80, block_size=block_size
        )
        return result.value, result

    for block_size in (None, 4):
        batched = jax.vmap(
            jax.value_and_grad(
                lambda *v, size=block_size: value(*v, size), has_aux=True
            )
        )
        (values, results), gradients = jax.jit(batched)(x, y, b)
        assert results.plan.shape == (classes, n, m)
        for c, count in enumerate(counts):
            own = ot.solve_sample(x[c], y[c, :count], epsilon=0.3, num_iters=80)
            np.testing.assert_allclose(values[c], own.value, rtol=1e-5)
            np.testing.assert_allclose(results.plan[c, :, count:], 0.0)
            agree(results.plan[c, :, :count], own.plan, 1e-3)
        assert np.isfinite(gradients).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_precision_does_not_depend_on_the_caller(dtype):
    x, y = (v.astype(dtype) for v in clouds(40, 40, 16))
    expected = ot.solve_sample(
        x.astype(jnp.float32), y.astype(jnp.float32), epsilon=0.5, num_iters=100
    )
    with jax.default_matmul_precision("bfloat16"):
        found = jax.jit(lambda x, y: ot.solve_sample(x, y, epsilon=0.5, num_iters=100))(
            x, y
        )
    assert found.value.dtype == jnp.float32
    np.testing.assert_allclose(found.value, expected.value, rtol=1e-6)
    gradient = jax.grad(
        lambda x: ot.solve_sample(x, y, epsilon=0.5, num_iters=20).value
    )(x)
    assert gradient.dtype == dtype


def test_matrix_products_ask_for_the_highest_precision():
    x, y = clouds(8, 8, 4)
    for options in ({}, {"block_size": 4}):
        text = (
            jax.jit(
                jax.grad(
                    lambda x, options=options: (
                        ot.solve_sample(
                            x, y, epsilon=1.0, num_iters=25, **options
                        ).value
                    )
                )
            )
            .lower(x)
            .as_text()
        )
        products = [line for line in text.splitlines() if "dot_general" in line]
        assert products
        assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)


def test_ott_costs_geometries_and_low_rank():
    from ott.geometry import costs, pointcloud

    x, y = clouds(30, 40, 3)
    cost_fn = costs.PNormP(1.5)
    ours = ot.solve_sample(x, y, cost_fn=cost_fn, epsilon=0.3, num_iters=300)
    theirs = ot.solve_sample(
        x, y, cost_fn=cost_fn, epsilon=0.3, num_iters=300, solver="ott"
    )
    np.testing.assert_allclose(ours.value, theirs.value, rtol=1e-4)
    np.testing.assert_allclose(ours.value_linear, theirs.value_linear, rtol=1e-4)
    agree(ours.plan, theirs.plan, 1e-3)
    shift = theirs.potentials[0][0] - ours.potentials[0][0]
    agree(theirs.potentials[0] - shift, ours.potentials[0], 1e-3)
    geometry = pointcloud.PointCloud(x, y)
    full = ot.solve(geometry, epsilon=0.3, num_iters=300, solver="ott")
    direct = ot.solve_sample(x, y, epsilon=0.3, num_iters=300)
    np.testing.assert_allclose(full.value, direct.value, rtol=1e-4)
    low = ot.solve(geometry, epsilon=0.01, solver="ott", rank=8)
    assert low.plan.shape == (30, 40) and low.potentials is None
    np.testing.assert_allclose(low.plan.sum(), 1.0, rtol=1e-3)
    assert float(low.value_linear) > ot.exact(ot.cost_matrix(x, y, "sqeuclidean"))


def test_divergence_has_no_gradient_between_equal_clouds():
    x, _ = clouds(20, 20, 4)
    gradient = jax.grad(
        lambda x, y: ot.sinkhorn_divergence(x, y, epsilon=0.5, num_iters=300)
    )(x, x[::-1])
    np.testing.assert_allclose(gradient, 0.0, atol=1e-4)


ERRORS = [
    (dict(epsilon=0.0), "epsilon must be positive"),
    (dict(epsilon=1.0, grad="magic"), "grad must be one of"),
    (dict(epsilon=1.0, method="fast"), "method must be one of"),
    (dict(epsilon=1.0, solver="pot"), "solver must be one of"),
    (dict(epsilon=1.0, rank=3), "only solver='ott'"),
    (dict(epsilon=1.0, grad="unroll"), "needs num_iters"),
    (dict(epsilon=1.0, num_iters=0), "num_iters must be a positive int"),
    (dict(epsilon=1.0, tau_a=1.5), "tau_a must be a number in"),
    (dict(epsilon=1.0, tau_b=jnp.float32(0.5)), "tau_b must be a number in"),
    (dict(epsilon=1.0, a=jnp.ones(3)), r"a must be \[2\]"),
    (dict(epsilon=1.0, a=jnp.array([1.5, -0.5])), "a must not be negative"),
    (dict(epsilon=1.0, b=jnp.array([1.0, jnp.nan, 1.0])), "b must be finite"),
    (dict(epsilon=1.0, a=jnp.ones(2)), "same mass"),
    (dict(epsilon=1.0, cost=jnp.array([[1.0, jnp.inf]])), "cost must be finite"),
    (
        dict(epsilon=1.0, cost=np.array([[1.0, 1e300]])),
        "cost must be finite in float32, found 1 of 2",
    ),
    (dict(epsilon=1.0, cost=jnp.ones(3)), r"cost must be \[n, m\]"),
    (dict(epsilon=1.0, solver="ott", init=(0, 0)), "init must be None"),
]


@pytest.mark.parametrize(("arguments", "message"), ERRORS)
def test_errors_name_the_argument_and_the_value(arguments, message):
    arguments = {"cost": jnp.ones((2, 3))} | arguments
    with pytest.raises(ValueError, match=message):
        ot.solve(**arguments)


def test_errors_of_points():
    x, y = clouds(3, 4, 2)
    for arguments, message in [
        (dict(x=x[0]), "x and y must be"),
        (dict(y=y[:, :1]), "x and y must be"),
        (dict(x=x.at[0, 0].set(jnp.nan)), "x must be finite"),
        (dict(block_size=0), "block_size must be"),
        (dict(cost_fn="l7"), "cost_fn must be"),
        (dict(block_size=2, solver="ott"), "block_size must be None"),
    ]:
        with pytest.raises(ValueError, match=message):
            ot.solve_sample(**({"x": x, "y": y, "epsilon": 1.0} | arguments))


points = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10_000))
# Padded to one size: one program serves all examples.
SIZE = 9


@jax.jit
def padded(x, y, a, b, epsilon):
    options = {"epsilon": epsilon, "num_iters": 2000}
    result = ot.solve_sample(x, y, a, b, **options)
    swapped = ot.solve_sample(y, x, b, a, **options)
    divergence = ot.sinkhorn_divergence(x, y, a, b, **options)
    return result, result.plan, swapped.value, divergence


@settings(max_examples=25, deadline=None)
@given(points)
def test_properties(drawn):
    n, m, seed = drawn
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, SIZE, 3)).astype(np.float32)
    a, b = rng.uniform(0.2, 1.0, (2, SIZE)).astype(np.float32)
    a[n:], b[m:] = 0.0, 0.0
    a, b = a / a.sum(), b / b.sum()
    epsilon = np.float32(0.5)
    result, plan, swapped, divergence = padded(x, y, a, b, epsilon)
    np.testing.assert_allclose(plan.sum(1), a, atol=2e-4)
    np.testing.assert_allclose(plan.sum(0), b, atol=2e-4)
    np.testing.assert_allclose(swapped, result.value, rtol=2e-4)
    assert float(divergence) > -1e-4
    order, other = rng.permutation(SIZE), rng.permutation(SIZE)
    moved = padded(x[order], y[other], a[order], b[other], epsilon)
    np.testing.assert_allclose(moved[1], plan[order][:, other], atol=2e-5)
    cost = np.asarray(ot.cost_matrix(jnp.asarray(x[:n]), jnp.asarray(y[:m]),
                                     "sqeuclidean"))  # fmt: skip
    exact = ot.exact(cost, a[:n].astype(np.float64), b[:m].astype(np.float64))
    assert float(result.value_linear) >= exact - 1e-3
    np.testing.assert_allclose(padded(x, x, a, a, epsilon)[3], 0.0, atol=1e-4)


def test_no_recompilation_for_new_values():
    x, y = clouds(6, 7, 2)
    solve = jax.jit(lambda x, y, e: ot.solve_sample(x, y, epsilon=e).value)
    for epsilon in (0.1, 0.2, 0.5):
        solve(x, y, epsilon)
    assert solve._cache_size() == 1
