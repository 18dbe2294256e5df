"""The guided reverse process on a mixture whose exact denoiser is known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ot_dd import ot
from ot_dd.diffusion import (
    SAMPLERS,
    Prediction,
    Term,
    Transport,
    ddpm_process,
    flow_process,
    sample_classes,
)

CLASSES, MODES, D, SPREAD = 3, 6, 4, 0.15
CENTERS = jax.random.normal(jax.random.key(42), (CLASSES, MODES, D))


def denoise(process, z, i, classes):
    """The posterior mean of an equal mixture of narrow Gaussians."""
    alpha, sigma = process.alpha[i], process.sigma[i]
    centers = CENTERS[classes]
    variance = (alpha * SPREAD) ** 2 + sigma**2
    offset = z[:, None] - alpha * centers
    share = jax.nn.softmax(-0.5 * jnp.sum(offset**2, -1) / variance, axis=-1)
    each = centers + alpha * SPREAD**2 / variance * offset
    x0 = jnp.einsum("bk,bkd->bd", share, each)
    return Prediction(x0, (z - alpha * x0) / sigma, None)


def draw(key, count):
    pick, noise = jax.random.split(key)
    which = jax.random.randint(pick, (CLASSES, count), 0, MODES)
    centers = jnp.take_along_axis(CENTERS, which[..., None], axis=1)
    return centers + SPREAD * jax.random.normal(noise, centers.shape)


def run(process, sampler, key=0, classes=None, group=6, terms=(), **options):
    classes = jnp.arange(CLASSES) if classes is None else classes
    program = partial(
        sample_classes, partial(denoise, process), process, SAMPLERS[sampler],
        jax.random.key(key), latent_shape=(D,), ipc=6, group=group, terms=terms,
        **options,
    )  # fmt: skip
    return jax.jit(program)(classes)


def held_out_distance(latents):
    unseen = draw(jax.random.key(8), 300)
    costs = [
        ot.exact(ot.cost_matrix(z, x, "sqeuclidean")) for z, x in zip(latents, unseen)
    ]
    return np.mean(costs)


PROCESSES = {
    "flow": (lambda: flow_process(20), "flow", (8, 19)),
    "ddim": (lambda: ddpm_process(50), "ddim", (10, 45)),
    "ddpm": (lambda: ddpm_process(50), "ddpm", (10, 45)),
}


@pytest.mark.parametrize("group", [1, 2, 6])
@pytest.mark.parametrize("name", list(PROCESSES))
def test_transport_guidance_lowers_the_distance_to_held_out_points(name, group):
    make, sampler, window = PROCESSES[name]
    process = make()
    transport = Transport(
        draw(jax.random.key(5), 64), jnp.full((CLASSES, 64), 1 / 64), "sqeuclidean",
        0.05, "mean_cost", 50, "clean",
    )  # fmt: skip
    terms = (Term("transport", 0.5, window),)
    plain, guided = [], []
    for key in range(3):
        plain.append(held_out_distance(run(process, sampler, key, group=group)[0]))
        latents, trace, _ = run(
            process, sampler, key, group=group, terms=terms, transport=transport
        )
        assert np.isfinite(latents).all()
        steps = process.alpha.shape[0]
        assert trace.shape == (6 // group, steps, CLASSES)
        on = np.isfinite(np.asarray(trace)).all(axis=(0, 2))
        expected = [window[0] <= i <= window[1] for i in range(steps - 1, -1, -1)]
        np.testing.assert_array_equal(on, expected)
        guided.append(held_out_distance(latents))
    assert np.mean(guided) < 0.75 * np.mean(plain), (guided, plain)


def test_deviation_spreads_a_class():
    process = flow_process(20)
    terms = (Term("deviation", 0.4, (12, 19)),)

    def nearest(latents):
        gaps = jnp.linalg.norm(latents[:, :, None] - latents[:, None], axis=-1)
        return float((gaps + 1e3 * jnp.eye(6)).min(-1).mean())

    plain = np.mean([nearest(run(process, "flow", k, group=1)[0]) for k in range(4)])
    spread = np.mean(
        [nearest(run(process, "flow", k, group=1, terms=terms)[0]) for k in range(4)]
    )
    assert spread > 1.2 * plain


def test_latents_do_not_depend_on_how_classes_are_batched():
    process = ddpm_process(20)
    whole, *_ = run(process, "ddpm", group=2)
    part, *_ = run(process, "ddpm", group=2, classes=jnp.array([2]))
    np.testing.assert_allclose(whole[2:], part, rtol=2e-5, atol=2e-5)


def test_sampling_inside_shard_map():
    """With JAX's own check of what varies, as its users have it."""
    process = flow_process(4)
    terms = Term("transport", 0.1, (0, 3)), Term("deviation", 0.1, (1, 2))
    weights = jnp.full((CLASSES, MODES), 1 / MODES)

    def sample(classes, real, weights):
        return sample_classes(
            partial(denoise, process), process, SAMPLERS["flow"], jax.random.key(0),
            classes, latent_shape=(D,), ipc=4, group=2, terms=terms,
            transport=Transport(real, weights, num_iters=20),
        )[0]  # fmt: skip

    mesh = jax.make_mesh((1,), ("data",), (jax.sharding.AxisType.Auto,))
    specs = (jax.sharding.PartitionSpec("data"),) * 3
    split = jax.shard_map(sample, mesh=mesh, in_specs=specs, out_specs=specs[0])
    inputs = jnp.arange(CLASSES), CENTERS, weights
    np.testing.assert_allclose(
        jax.jit(split)(*inputs), jax.jit(sample)(*inputs), rtol=1e-4, atol=1e-5
    )


def test_without_guidance_the_group_does_not_matter():
    process = ddpm_process(20)
    np.testing.assert_allclose(
        run(process, "ddpm", group=1)[0], run(process, "ddpm", group=6)[0], atol=2e-5
    )


def test_steps_outside_the_windows_do_not_pay_for_guidance():
    calls = []

    def influence(moment):
        jax.debug.callback(lambda: calls.append(1))
        return jnp.zeros_like(moment.z)

    process = flow_process(10)
    run(process, "flow", terms=(Term("influence", 1.0, (6, 8)),), influence=influence)
    jax.effects_barrier()
    assert len(calls) == 3


def test_one_compilation_for_all_steps_and_samples():
    process, traces = flow_process(10), []

    def counting(z, i, classes):
        traces.append(1)
        return denoise(process, z, i, classes)

    transport = Transport(draw(jax.random.key(5), 8), jnp.full((CLASSES, 8), 1 / 8))
    program = jax.jit(
        lambda key: sample_classes(
            counting,
            process,
            SAMPLERS["flow"],
            key,
            jnp.arange(CLASSES),
            latent_shape=(D,),
            ipc=6,
            terms=(Term("transport", 0.1, (5, 9)),),
            transport=transport,
        )  # fmt: skip
    )
    program(jax.random.key(0))
    first = len(traces)
    program(jax.random.key(1))
    assert program._cache_size() == 1
    assert first == len(traces) <= 4  # two branches, not steps x samples


def test_gradients_that_are_not_finite_are_left_out_and_counted():
    process = flow_process(6)
    real = draw(jax.random.key(5), 8)
    weights = jnp.full((CLASSES, 8), 1 / 8)
    spoilt = real.at[1, 0, 0].set(jnp.nan)  # of the second class alone

    def sampled(real):
        return sample_classes(
            partial(denoise, process), process, SAMPLERS["flow"], jax.random.key(0),
            jnp.arange(CLASSES), latent_shape=(D,), ipc=4, group=4,
            terms=(Term("transport", 0.1, (3, 4)),),
            transport=Transport(real, weights),
        )  # fmt: skip

    latents, _, left_out = jax.jit(sampled)(spoilt)
    whole, _, none = jax.jit(sampled)(real)
    assert none.sum() == 0 and jnp.isfinite(latents).all()
    # [groups, steps, terms, classes]; two steps of the window, four samples.
    assert left_out.shape == (1, 6, 1, CLASSES)
    assert left_out[0, :, 0, 1].tolist() == [0, 4, 4, 0, 0, 0]
    assert left_out.sum() == 8
    np.testing.assert_allclose(latents[0], whole[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group": 4}, "group must divide ipc, 6, found 4"),
        ({"group": 0}, "group must divide ipc"),
        ({"terms": (Term("transport", 1.0, (0, 3)),)}, "needs the argument transport"),
        ({"terms": (Term("influence", 1.0, (0, 3)),)}, "needs the argument influence"),
        ({"terms": (Term("deviation", 1.0, (5, 0)),)}, "window"),
        ({"terms": (Term("deviation", 1.0, (900, 999)),)}, "window"),
        (
            {
                "terms": (Term("transport", 1.0, (0, 3)),),
                "transport": Transport(
                    CENTERS, jnp.full((CLASSES, MODES), 1 / MODES), space="features"
                ),
            },
            "needs embed",
        ),
        (
            {
                "terms": (Term("influence", 1.0, (0, 3)),),
                "influence": lambda moment: moment.pull_back(moment.x0),
            },
            "needs backprop=True",
        ),
    ],
)
def test_terms_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        run(ddpm_process(8), "ddpm", **options)


def test_a_narrow_denoiser_is_taken():
    real = Transport(CENTERS, jnp.full((CLASSES, MODES), 1 / MODES), "sqeuclidean")
    process = ddpm_process(8)
    found = {}
    for dtype in (jnp.float32, jnp.bfloat16):

        def narrow(z, i, classes, dtype=dtype):
            made = denoise(process, z, i, classes)
            return jax.tree.map(lambda v: v.astype(dtype), made)

        found[dtype], _, _ = sample_classes(
            narrow, process, SAMPLERS["ddpm"], jax.random.key(0), jnp.arange(CLASSES),
            latent_shape=(D,), ipc=2, group=2, transport=real,
            terms=(Term("transport", 0.1, (0, 7), backprop=True),),
        )  # fmt: skip
    assert found[jnp.bfloat16].dtype == jnp.float32
    gap = jnp.abs(found[jnp.bfloat16] - found[jnp.float32]).max()
    assert 0 < gap < 0.1


def test_unknown_term():
    with pytest.raises(ValueError, match="guidance term must be one of"):
        run(flow_process(4), "flow", terms=(Term("magic", 1.0, (0, 3)),))
