"""One transport problem over many devices: equal answers, small messages."""

import json
import os
import subprocess
import sys
import textwrap

import pytest


def run(*code: str, devices: int = 8, **environment) -> dict:
    """Runs a program in a process with fake devices; returns the JSON it prints."""
    head = "import json, re\nimport jax, jax.numpy as jnp, numpy as np\n"
    if devices:
        head += f'jax.config.update("jax_num_cpu_devices", {devices})\n'
    head += "from ot_dd import ot\n"
    code = head + "".join(textwrap.dedent(part) for part in code)
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, timeout=600,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-3000:]
    return json.loads(found.stdout.strip().splitlines()[-1])


CLOUDS = """
rng = np.random.default_rng(0)
x = jnp.asarray(rng.normal(size=(203, 6)), jnp.float32)
y = jnp.asarray(rng.normal(size=(57, 6)) + 0.5, jnp.float32)
a = jnp.asarray(rng.uniform(0.5, 1.5, 203), jnp.float32)
a = a.at[5].set(0.0)
a = a / a.sum()

def mesh(devices):
    kind = jax.sharding.AxisType.Auto
    devices = jax.devices()[:devices]
    return jax.make_mesh((len(devices),), ("data",), (kind,), devices=devices)

def gap(found, expected):
    return float(jnp.abs(found - expected).max() / jnp.abs(expected).max())
"""


def test_equals_one_device_on_1_2_4_8():
    found = run(
        CLOUDS,
        """
    out = {}
    for name, options in {
        "fixed": dict(num_iters=60),
        "log": dict(num_iters=60, method="log"),
        "until": dict(threshold=1e-5),
        "unbalanced": dict(num_iters=60, tau_a=0.8, tau_b=0.9),
        "small": dict(num_iters=60, epsilon=0.02),
    }.items():
        options = {"epsilon": 0.4} | options
        def value(x, y, a, solve, **more):
            result = solve(x, y, a, **options, **more)
            return result.value, result
        grad = jax.value_and_grad(value, argnums=(0, 1, 2), has_aux=True)
        (_, one), one_grad = grad(x, y, a, ot.solve_sample)
        for devices in (1, 2, 4, 8) if name == "fixed" else (8,):
            for block in (None, 16) if name == "fixed" else (16,):
                (_, many), many_grad = grad(
                    x, y, a, ot.solve_sample_sharded, mesh=mesh(devices), block_size=block
                )
                pairs = [
                    (many.potentials[0], one.potentials[0]),
                    (many.potentials[1], one.potentials[1]),
                    (many.value, one.value),
                    (many.value_linear, one.value_linear),
                    *zip(many_grad, one_grad),
                    (many.plan, one.plan),
                ]
                assert many.plan.shape == (203, 57)
                out[f"{name}-{devices}-{block}"] = [gap(*pair) for pair in pairs]
    print(json.dumps(out))
    """,
    )
    for name, gaps in found.items():
        # Potentials of a small epsilon are far from convergence, but still alike.
        assert max(gaps[:4]) < 1e-5, (name, gaps)
        assert max(gaps[4:]) < 2e-3, (name, gaps)


def test_an_iteration_sends_two_vectors():
    found = run(
        CLOUDS,
        """
    from jax.sharding import NamedSharding, PartitionSpec as P
    grid = mesh(8)
    rows = NamedSharding(grid, P("data"))
    x = jnp.concatenate([x, x[:5]])
    n, m = len(x), len(y)
    out = {}
    for method in ("log", "auto"):
        def value(x, y):
            return ot.solve_sample_sharded(
                x, y, mesh=grid, epsilon=0.4, num_iters=60, method=method, block_size=13
            ).value
        text = jax.jit(
            jax.grad(value), in_shardings=(rows, None)
        ).lower(x, y).compile().as_text()
        kinds = set(re.findall(
            r"(all-gather|all-to-all|collective-permute|reduce-scatter)", text))
        sizes = []
        for line in text.splitlines():
            if re.search(r" all-reduce(-start)?\\(", line):
                shapes = re.findall(r"f32\\[([0-9,]*)\\]", line.split(" all-reduce")[0])
                sizes += [int(np.prod([int(v) for v in s.split(",") if v] or [1]))
                          for s in shapes]
        out[method] = {"kinds": sorted(kinds), "largest": max(sizes), "count": len(sizes),
                       "n": n, "m": m}
    print(json.dumps(out))
    """,
    )
    for facts in found.values():
        assert facts["kinds"] == []
        assert facts["count"] >= 2
        assert facts["largest"] <= facts["m"] < facts["n"]


def test_errors():
    found = run(
        CLOUDS,
        """
    try:
        ot.solve_sample_sharded(x, y, mesh=mesh(2), axis="rows", epsilon=1.0)
    except ValueError as error:
        print(json.dumps(str(error)))
    """,
    )
    assert "axis must be one of ('data',), found 'rows'" in found


def test_every_device_solves_its_own_problem_inside_shard_map():
    """With `check_vma=True`, JAX's default, against the same under `vmap`."""
    found = run(
        CLOUDS,
        """
    from jax.sharding import PartitionSpec as P
    from ot_dd import losses
    x = x[:200]
    labels = jnp.arange(200) % 6
    def until(x, y):
        return ot.solve_sample(x, y, epsilon=0.5, threshold=1e-4).value
    def solver(**options):
        options = {"epsilon": 0.5, "num_iters": 30} | options
        return lambda x, y: ot.solve_sample(x, y, **options).value
    problems = {
        "until": until, "fixed": solver(), "log": solver(method="log"),
        "unroll": solver(grad="unroll"), "l1": solver(cost_fn="l1"),
        "kernel": solver(grad="unroll", method="kernel"), "blocks": solver(block_size=7),
        "relaxed": solver(tau_a=0.8, tau_b=0.9),
        "divergence": lambda x, y: ot.sinkhorn_divergence(
            x, y, epsilon=0.5, num_iters=30),
        "matching": lambda x, y: losses.logit_matching(x, y[: len(x)]),
        "student": lambda x, y: losses.student_loss(x, y[: len(x)], labels[: len(x)]),
    }
    out = {}
    for name, problem in problems.items():
        def shares(x, y):
            own = jax.shard_map(lambda x, y: problem(x, y)[None], mesh=mesh(4),
                                in_specs=(P("data"), P()), out_specs=P("data"))
            return own(x, y).sum()
        def batch(x, y):
            return jax.vmap(lambda x: problem(x, y))(x.reshape(4, 50, 6)).sum()
        value, gradient = jax.jit(jax.value_and_grad(shares, argnums=(0, 1)))(x, y)
        same, expected = jax.jit(jax.value_and_grad(batch, argnums=(0, 1)))(x, y)
        scale = [float(jnp.abs(e).max()) + 1e-3 for e in expected]
        out[name] = max([gap(value, same)] + [
            float(jnp.abs(g - e).max()) / s
            for g, e, s in zip(gradient, expected, scale)])
    # A value that the function closes over is only looked at where it can be.
    eager = jax.shard_map(lambda x: until(x, y)[None], mesh=mesh(4),
                          in_specs=P("data"), out_specs=P("data"), check_vma=False)
    out["closed over"] = gap(eager(x), jnp.stack([until(v, y) for v in
                                                  x.reshape(4, 50, 6)]))
    print(json.dumps(out))
    """,
    )
    assert all(value < 1e-4 for value in found.values()), found


@pytest.mark.tpu_aot
@pytest.mark.slow
def test_imagenet_size_compiles_for_a_pod():
    pytest.importorskip("libtpu")
    found = run(
        """
        from jax.experimental import topologies
        from jax.sharding import NamedSharding, PartitionSpec as P
        pod = topologies.get_topology_desc(platform="tpu", topology_name="v5e:16x16")
        grid = topologies.make_mesh(pod, (256,), ("data",))
        n, m, d = 1_281_167 // 256 * 256, 50_000, 512
        rows, all_ = NamedSharding(grid, P("data")), NamedSharding(grid, P())
        x = jax.ShapeDtypeStruct((n, d), jnp.float32, sharding=rows)
        y = jax.ShapeDtypeStruct((m, d), jnp.float32, sharding=all_)

        def value(x, y):
            return ot.solve_sample_sharded(
                x, y, mesh=grid, epsilon=1.0, num_iters=100, block_size=128
            ).value

        compiled = jax.jit(jax.value_and_grad(value, argnums=(0, 1))).lower(x, y).compile()
        memory = compiled.memory_analysis()
        sizes = [
            int(np.prod([int(v) for v in s.split(",") if v] or [1]))
            for line in compiled.as_text().splitlines()
            if re.search(r" all-reduce(-start)?\\(", line)
            for s in re.findall(r"f32\\[([0-9,]*)\\]", line.split(" all-reduce")[0])
        ]
        print(json.dumps({"temp": memory.temp_size_in_bytes,
                          "arguments": memory.argument_size_in_bytes, "sizes": sizes}))
        """,
        devices=0, TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    )  # fmt: skip
    # 128 x 50,000 costs and the gradient of y are what a chip holds beside its points.
    assert found["temp"] < 512 * 2**20
    assert found["arguments"] < 2**30
    assert max(found["sizes"]) <= 50_000 * 512


def test_logit_matching_of_the_global_batch_or_of_each_device():
    found = run(
        CLOUDS,
        """
    from jax.sharding import NamedSharding, PartitionSpec as P
    from ot_dd import losses
    grid = mesh(8)
    split = NamedSharding(grid, P("data"))
    student, soft = rng.normal(size=(2, 64, 10)).astype(np.float32) * 2
    out = {}
    for groups in (1, 8):
        def loss(s, t):
            return losses.logit_matching(s, t, groups=groups)
        grad = jax.value_and_grad(loss)
        value, gradient = grad(jnp.asarray(student), jnp.asarray(soft))
        many = jax.jit(grad, in_shardings=(split, split), out_shardings=(None, split))
        arguments = [jax.device_put(v, split) for v in (student, soft)]
        sharded, sharded_gradient = many(*arguments)
        text = many.lower(*arguments).compile().as_text()
        out[groups] = {
            "value": gap(sharded, value), "gradient": gap(sharded_gradient, gradient),
            "gathers": len(re.findall("all-gather|all-to-all|permute", text)),
        }
    print(json.dumps(out))
    """,
    )
    for facts in found.values():
        assert facts["value"] < 1e-5 and facts["gradient"] < 1e-4
    assert found["1"]["gathers"] > 0
    assert found["8"]["gathers"] == 0
