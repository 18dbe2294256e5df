"""Arrays on meshes as `jax.make_mesh` makes them: of Explicit axes."""

from test_sharded import CLOUDS, run

EXPLICIT = (
    CLOUDS
    + """
from jax.sharding import NamedSharding, PartitionSpec as P
from ot_dd import losses
grid = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4])
assert grid.axis_types == (jax.sharding.AxisType.Explicit,)
def put(v, *spec):
    return jax.device_put(v, NamedSharding(grid, P(*spec)))
x, y, a = x[:200], y[:56], a[:200] / a[:200].sum()
"""
)


def test_solvers_and_losses_give_what_one_device_gives():
    """With the mesh as JAX's context or without, of split rows and of whole ones."""
    found = run(
        EXPLICIT,
        """
    def solver(**options):
        options = {"epsilon": 0.5, "num_iters": 30} | options
        return lambda x, y, a: ot.solve_sample(x, y, a, **options).value
    def sharded(**options):
        return lambda x, y, a: ot.solve_sample_sharded(
            x, y, a, mesh=grid, epsilon=0.5, num_iters=30, **options).value
    problems = {
        "until": (solver(num_iters=None, threshold=1e-5),) * 2,
        "unroll": (solver(grad="unroll", method="log"),) * 2,
        "blocks": (solver(block_size=7),) * 2,
        "ott": (solver(solver="ott", method="log"),) * 2,
        "matrix": (lambda x, y, a: ot.solve(
            ot.cost_matrix(x, y, "l1"), a, epsilon=0.5).value,) * 2,
        "divergence": (lambda x, y, a: ot.sinkhorn_divergence(
            x, y, a, epsilon=0.5, num_iters=30),) * 2,
        "plan": (lambda x, y, a: (ot.solve_sample(
            x, y, a, epsilon=0.5, num_iters=30, grad="unroll").plan ** 2).sum(),) * 2,
        "sharded": (solver(), sharded()),
        "sharded blocks": (solver(), sharded(block_size=7)),
        "classes": (lambda x, y, a: jax.vmap(lambda x: solver()(x, y, None))(
            x.reshape(4, 50, 6)).sum() + a.sum(),) * 2,
    }
    cases = {name: (*pair, (x, y, a)) for name, pair in problems.items()}
    for name, loss in {
        "matching": losses.logit_matching,
        "groups": lambda x, y: losses.logit_matching(x, y, groups=4),
        "kl": losses.soft_label_kl, "mse": losses.logit_mse,
        "student": lambda x, y: losses.student_loss(x, y, labels),
        "masked": lambda x, y: losses.student_loss(x, y, labels, where=labels > 0),
    }.items():
        cases[name] = (loss, loss, (x, x[::-1] + 0.5))
    out = {}
    for name, (alone, together, arrays) in cases.items():
        labels = jnp.arange(200) % 6
        expected = jax.jit(jax.value_and_grad(alone))(*arrays)
        labels = put(np.arange(200) % 6, "data")
        ways = {"split": ("data",) * 3, "first": ("data", None, "data"),
                "whole": (None,) * 3}
        for how in ways if name in ("until", "student") else ["split"]:
            specs = ways[how]
            placed = [put(v, s) for v, s in zip(arrays, specs)]
            step = jax.jit(jax.value_and_grad(together))
            if len(out) % 2:
                with jax.set_mesh(grid):
                    found = step(*placed)
            else:
                found = step(*placed)
            assert found[1].sharding.is_equivalent_to(placed[0].sharding, 2), name
            out[name + how] = max(map(gap, found, expected))
    print(json.dumps(out))
    """,
    )
    # Sums over 200 examples in another order.
    assert max(found.values()) < 1e-4, found
    assert len(found) == 16 + 2 * 2


def test_results_of_the_sharded_solver_are_split_where_rows_divide():
    found = run(
        EXPLICIT,
        """
    expected = ot.solve_sample(x, y, a, epsilon=0.5)
    out = {}
    for n in (200, 199):
        def solve(x, y):
            return ot.solve_sample_sharded(x, y, mesh=grid, epsilon=0.5)
        points = put(x[:n], "data" if n == 200 else None)
        expected = ot.solve_sample(x[:n], y, epsilon=0.5)
        for name, result in {"eager": solve(points, put(y)),
                             "jit": jax.jit(solve)(points, put(y))}.items():
            rows, columns = result.potentials
            for v in rows, result.coupling.geometry.x, result.plan:
                held = len(v.addressable_shards[0].data)
                assert held == (50 if n == 200 else n), (n, name, held)
            assert columns.sharding.is_fully_replicated
            out[f"{n} {name}"] = gap(result.plan, expected.plan)
    # Points that are nowhere yet, on a mesh of this kind.
    result = solve(np.asarray(x), np.asarray(y))
    assert "data" in (result.potentials[0] + put(np.ones(200, "f"), "data")).sharding.spec
    out["numpy"] = gap(result.plan, ot.solve_sample(x, y, epsilon=0.5).plan)
    print(json.dumps(out))
    """,
    )
    assert max(found.values()) < 1e-4, found


def test_diffusion_losses_and_guidance():
    found = run(
        EXPLICIT,
        """
    from ot_dd.diffusion import ddpm_process
    steps = ddpm_process(50)
    def image(seed, channels=3):
        return jax.random.normal(jax.random.key(seed), (8, 4, 4, channels))
    numbers = jnp.arange(8) * 6
    def noise(output, x0, eps):
        return losses.epsilon_loss(
            output, x0, eps, number, steps, learned_sigma=True).mean()
    def autoencoder(r, x, mean):
        return losses.autoencoder_loss(r, x, mean, mean / 2, mse_weight=0.5).mean()
    def guidance(points, real, weights, memory, filled):
        return losses.transport_guidance(
            points, real, weights, memory_cost=memory, filled=filled,
            cost_fn="sqeuclidean", epsilon=0.5)[0].sum()
    finished = jnp.full((12, 56), 2.0), (jnp.arange(12) < 5) * 1.0
    out = {}
    for name, (loss, arrays) in {
        "noise": (noise, (image(0, 6), image(1), image(2))),
        "autoencoder": (autoencoder, (image(0), image(1), image(2))),
        "guidance": (guidance, (x[:8], y, jnp.full(56, 1 / 56), *finished)),
    }.items():
        number = numbers
        expected = jax.jit(jax.value_and_grad(loss))(*arrays)
        number = put(numbers, "data")
        placed = [put(v, "data") for v in arrays]
        with jax.set_mesh(grid):
            found = jax.jit(jax.value_and_grad(loss))(*placed)
        out[name] = max(map(gap, found, expected))
    print(json.dumps(out))
    """,
    )
    assert max(found.values()) < 1e-4 and len(found) == 3, found


def test_eager_calls_compile_once():
    found = run(
        EXPLICIT,
        """
    points = put(x, "data")
    solve = ot._sinkhorn._solve_points
    for seed in range(3):
        result = ot.solve_sample(points + seed, y, epsilon=0.5)
        losses.logit_matching(points, points + seed)
    print(json.dumps({"programs": solve._cache_size()}))
    """,
    )
    assert found == {"programs": 1}


def test_meshes_of_several_axes():
    """Rows over either axis or both, of either type; gradients of a partly manual map."""
    found = run(
        EXPLICIT,
        """
    kinds = jax.sharding.AxisType.Explicit, jax.sharding.AxisType.Auto
    expected = jax.value_and_grad(
        lambda x: ot.solve_sample(x, y, epsilon=0.5, num_iters=5).value)(x)
    out = {}
    for i, types in enumerate([(0, 0), (0, 1), (1, 0)]):
        grid = jax.make_mesh((2, 2), ("data", "model"), tuple(kinds[t] for t in types),
                             devices=jax.devices()[:4])
        for axis in ("data", "model", ("data", "model")):
            def value(x, mesh=grid, axis=axis):
                return ot.solve_sample_sharded(
                    x, y, mesh=mesh, axis=axis, epsilon=0.5, num_iters=5).value
            for spec in (P(axis), P()):
                placed = jax.device_put(np.asarray(x), NamedSharding(grid, spec))
                found = jax.jit(jax.value_and_grad(value))(placed)
                out[f"{i} {axis} {spec}"] = max(map(gap, found, expected))
    auto = mesh(4)
    with jax.set_mesh(auto):
        found = jax.jit(lambda x: value(x, auto.abstract_mesh, "data"))(
            jax.device_put(x, NamedSharding(auto, P("data"))))
    out["abstract"] = gap(found, expected[0])

    grid = jax.make_mesh((2, 2), ("data", "model"), devices=jax.devices()[:4])
    def shares(loss):
        def own(x):
            return loss(x, x * x + 1)[None]
        return lambda x: jax.shard_map(
            own, mesh=grid, in_specs=P("data"), out_specs=P("data"),
            axis_names={"data"})(x).sum()
    for name, loss in {"mse": losses.logit_mse, "matching": losses.logit_matching,
                       "solve": lambda x, y: ot.solve_sample(
                           x, y, epsilon=0.5, num_iters=5).value}.items():
        alone = jax.grad(lambda x: sum(loss(v, v * v + 1) for v in jnp.split(x, 2)))(x)
        with jax.set_mesh(grid):
            found = jax.jit(jax.grad(shares(loss)))(
                jax.device_put(np.asarray(x), NamedSharding(grid, P("data"))))
        out[name] = gap(found, alone)
    print(json.dumps(out))
    """,
    )
    assert max(found.values()) < 1e-4 and len(found) == 18 + 4, found
