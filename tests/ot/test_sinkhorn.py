import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ot_dd import ot


@pytest.fixture
def clouds():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(12, 5)), jnp.float32), jnp.asarray(
        rng.normal(size=(17, 5)) + 0.5, jnp.float32
    )


@pytest.mark.parametrize("name", ["sqeuclidean", "l1", "mean_l1", "cosine"])
def test_costs_by_scipy(clouds, name):
    from scipy.spatial.distance import cdist

    x, y = map(np.asarray, clouds)
    metric = {"l1": "cityblock", "mean_l1": "cityblock"}.get(name, name)
    expected = cdist(x, y, metric) / (5 if name == "mean_l1" else 1)
    found = jax.jit(lambda x, y: ot.cost_matrix(x, y, name))(*clouds)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_callable_cost(clouds):
    found = ot.cost_matrix(*clouds, lambda p, q: jnp.sum((p - q) ** 2))
    np.testing.assert_allclose(found, ot.cost_matrix(*clouds, "sqeuclidean"), rtol=1e-4)


def test_agrees_with_pot_and_ott(clouds):
    import ot as pot
    from ott.geometry.geometry import Geometry
    from ott.solvers import linear

    cost = ot.cost_matrix(*clouds, "sqeuclidean")
    epsilon = 0.1 * float(cost.mean())
    result = ot.solve(cost, epsilon=epsilon, threshold=1e-6)
    assert bool(result.converged)
    plan = pot.sinkhorn(
        np.full(12, 1 / 12), np.full(17, 1 / 17), np.asarray(cost, np.float64), epsilon,
        stopThr=1e-12, numItermax=10_000,
    )  # fmt: skip
    np.testing.assert_allclose(result.plan, plan, atol=2e-6)
    out = linear.solve(
        Geometry(cost_matrix=cost, epsilon=epsilon), threshold=1e-6, max_iterations=5000
    )
    np.testing.assert_allclose(result.value, out.reg_ot_cost, rtol=1e-4)


def test_unbalanced_agrees_with_pot(clouds):
    import ot as pot

    cost = ot.cost_matrix(*clouds, "sqeuclidean")
    epsilon, rho = 0.5, 2.0
    tau = rho / (rho + epsilon)
    result = ot.solve(cost, epsilon=epsilon, num_iters=500, tau_a=tau, tau_b=tau)
    a, b = np.full(12, 1 / 12), np.full(17, 1 / 17)
    plan = pot.sinkhorn_unbalanced(
        a, b, np.asarray(cost, np.float64), epsilon, rho, reg_type="kl",
        stopThr=1e-12, numItermax=10_000, c=a[:, None] * b[None, :],
    )  # fmt: skip
    np.testing.assert_allclose(result.plan, plan, rtol=2e-3, atol=1e-6)


def test_small_epsilon_approaches_exact(clouds):
    import ot as pot

    cost = ot.cost_matrix(*clouds, "sqeuclidean")
    exact = ot.exact(cost)
    reference = pot.emd2([], [], np.asarray(cost, np.float64))
    np.testing.assert_allclose(exact, reference, rtol=1e-6)
    mean = float(cost.mean())
    gaps = [
        float(ot.solve(cost, epsilon=e * mean, num_iters=3000).value_linear) - exact
        for e in (0.2, 0.05, 0.01)
    ]
    assert gaps[0] > gaps[1] > gaps[2] > -1e-4
    assert gaps[2] < 0.02 * exact


def test_exact_as_assignment():
    import ot as pot

    cost = np.random.default_rng(1).random((5, 20))
    np.testing.assert_allclose(ot.exact(cost), pot.emd2([], [], cost), rtol=1e-9)
    np.testing.assert_allclose(ot.exact(cost.T), pot.emd2([], [], cost), rtol=1e-9)


def test_raw_l1_between_latents_stays_finite():
    # Costs of several thousand at epsilon 0.1: exp(-C / eps) is zero in float32.
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=(n, 4096)), jnp.float32) for n in (4, 9))
    result = ot.solve_sample(x, y, cost_fn="l1", epsilon=0.1, num_iters=50)
    assert np.isfinite(result.plan).all()
    np.testing.assert_allclose(result.plan.sum(), 1.0, rtol=1e-3)


def test_zero_weights_are_padding(clouds):
    x, y = clouds
    padded = jnp.concatenate([x, 1e3 * jnp.ones((3, 5))])
    a = jnp.concatenate([jnp.full(12, 1 / 12), jnp.zeros(3)])
    options = {"epsilon": 1.0, "num_iters": 100}
    plain = ot.solve_sample(x, y, **options)
    masked = ot.solve_sample(padded, y, a, **options)
    np.testing.assert_allclose(plain.value, masked.value, rtol=1e-5)
    np.testing.assert_allclose(masked.plan[12:], 0.0)
    gradient = jax.grad(lambda p: ot.solve_sample(p, y, a, **options).value)(padded)
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(gradient[12:], 0.0)


@pytest.mark.parametrize("grad", ["envelope", "unroll"])
@pytest.mark.parametrize("cost_fn", ["sqeuclidean", "mean_l1", "cosine"])
def test_gradient_against_finite_differences(clouds, grad, cost_fn):
    with jax.enable_x64(True):
        x, y = (jnp.asarray(v, jnp.float64) for v in clouds)

        def value(x, y):
            return ot.solve_sample(
                x, y, cost_fn=cost_fn, epsilon=0.3, num_iters=400, grad=grad
            ).value

        direction = jax.random.normal(jax.random.key(0), x.shape, jnp.float64)
        h = 1e-5
        numeric = (value(x + h * direction, y) - value(x - h * direction, y)) / (2 * h)
        found = jnp.vdot(jax.grad(value)(x, y), direction)
        np.testing.assert_allclose(found, numeric, rtol=1e-5)


def test_unrolled_linear_value_and_none(clouds):
    def linear(x, grad):
        return ot.solve_sample(
            x, clouds[1], epsilon=1.0, num_iters=10, grad=grad
        ).value_linear

    x = clouds[0]
    direction = jax.random.normal(jax.random.key(0), x.shape)
    h = 1e-2
    plus, minus = (linear(x + s * h * direction, "unroll") for s in (1, -1))
    found = jnp.vdot(jax.grad(linear)(x, "unroll"), direction)
    np.testing.assert_allclose(found, (plus - minus) / (2 * h), rtol=1e-2)
    np.testing.assert_allclose(jax.grad(linear)(x, "none"), 0.0)


def test_weight_gradient(clouds):
    cost = ot.cost_matrix(*clouds, "sqeuclidean")

    def value(a):
        return ot.solve(cost, a / a.sum(), epsilon=1.0, num_iters=300).value

    a = jnp.linspace(1.0, 2.0, 12)
    direction = jax.random.normal(jax.random.key(1), (12,))
    numeric = (value(a + 1e-2 * direction) - value(a - 1e-2 * direction)) / 2e-2
    np.testing.assert_allclose(
        jnp.vdot(jax.grad(value)(a), direction), numeric, rtol=2e-2
    )


def test_warm_start_and_vmap(clouds):
    cost = ot.cost_matrix(*clouds, "sqeuclidean")
    cold = ot.solve(cost, epsilon=0.5, threshold=1e-5)
    warm = ot.solve(cost, epsilon=0.5, threshold=1e-5, init=cold.potentials)
    assert int(warm.n_iters) < int(cold.n_iters)
    batch = jax.vmap(lambda c: ot.solve(c, epsilon=0.5, threshold=1e-5).value)(
        jnp.stack([cost, 2 * cost])
    )
    np.testing.assert_allclose(batch[0], cold.value, rtol=1e-4)


def test_divergence_is_zero_only_for_equal_clouds(clouds):
    x, y = clouds
    divergence = jax.jit(
        lambda x, y: ot.sinkhorn_divergence(x, y, epsilon=0.5, num_iters=500)
    )
    assert abs(float(divergence(x, x[::-1]))) < 1e-4
    assert float(divergence(x, y)) > 0.05
    means = jnp.sum((x.mean(0) - y.mean(0)) ** 2)
    far = ot.sinkhorn_divergence(x, y, epsilon=1e3, num_iters=20)
    np.testing.assert_allclose(far, means, rtol=2e-2)


def test_a_divergence_tells_whether_it_converged(clouds):
    def converged(**options):
        loss = functools.partial(ot.sinkhorn_divergence, epsilon=0.05, has_aux=True)
        (value, flag), gradient = jax.value_and_grad(loss, has_aux=True)(
            *clouds, **options
        )
        np.testing.assert_allclose(
            value, ot.sinkhorn_divergence(*clouds, epsilon=0.05, **options)
        )
        assert gradient.shape == clouds[0].shape
        return bool(flag)

    assert converged(threshold=1e-2)
    assert not converged(num_iters=2)


def test_clouds_of_numpy_and_lists(clouds):
    x, y = (np.asarray(v)[:6] for v in clouds)
    wanted = np.abs(x[:, None] - y).sum(-1)
    for pair in ((x, y), (x.tolist(), y.tolist())):
        np.testing.assert_allclose(ot.cost_matrix(*pair, "l1"), wanted, rtol=1e-5)
    inside = jax.jit(jax.vmap(lambda s: ot.cost_matrix(s * x, y, "l1")))(np.ones(2))
    np.testing.assert_allclose(inside[1], wanted, rtol=1e-5)
    fixed = jax.jit(jax.vmap(lambda s: s * ot.cost_matrix(x, y, "l1")))(np.ones(2))
    np.testing.assert_allclose(fixed[1], wanted, rtol=1e-5)


def test_exact_names_unequal_masses():
    with pytest.raises(ValueError, match="equal mass"):
        ot.exact(np.ones((2, 2)), [1.0, 1.0], [1.0, 0.5])
