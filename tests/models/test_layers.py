import re
import subprocess
import sys
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ot_dd import platform
from ot_dd.models import layers

PATHS = [layers.conv_on_cpu, layers.conv_as_matmul, layers.conv_by_xla]
CASES = [
    # image, kernel, strides, padding
    ((2, 9, 8, 3), (3, 3, 3, 5), 1, "SAME"),
    ((2, 9, 8, 3), (3, 3, 3, 5), 2, "SAME"),
    ((2, 9, 8, 3), (3, 3, 3, 5), 2, "VALID"),
    ((2, 9, 8, 1), (3, 3, 1, 5), 1, 1),
    ((2, 9, 8, 3), (7, 7, 3, 5), 2, 3),
    ((2, 8, 8, 3), (3, 3, 3, 5), 2, ((0, 1), (0, 1))),
    ((2, 9, 8, 3), (1, 1, 3, 5), 1, 0),
    ((2, 9, 8, 3), (1, 1, 3, 5), 2, 0),
    ((2, 8, 8, 3), (4, 4, 3, 5), 4, 0),
    ((2, 9, 8, 6), (3, 3, 1, 6), 1, 1),
    ((2, 9, 8, 6), (3, 3, 1, 6), 2, 1),
    ((2, 9, 8, 9), (3, 5, 9, 4), 1, ((0, 2), (1, 3))),
    ((2, 9, 8, 9), (3, 3, 9, 4), 1, 3),
]


@pytest.fixture(params=["whole", "in parts"])
def cache(request, monkeypatch):
    """Has kernel gradients summed over the batch at once, then one image at a time."""
    if request.param == "in parts":
        monkeypatch.setattr(layers, "_CACHE", 1)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(("image", "kernel", "strides", "padding"), CASES)
def test_conv_paths_agree(image, kernel, strides, padding):
    @jax.jit
    def values_and_grads(x, k):
        results = []
        for convolve in PATHS:
            convolve = partial(convolve, strides=strides, padding=padding)
            y, pullback = jax.vjp(convolve, x, k)
            results.append((y, *pullback(jnp.sin(y))))
        return results

    *ours, expected = values_and_grads(normal(0, *image), normal(1, *kernel))
    for result in ours:
        for a, b in zip(result, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-4)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("channels", [2, 9])
def test_conv_second_order_gradient_agrees(channels):
    # The influence guidance differentiates through a gradient.
    x, k = normal(0, 2, 6, 6, channels), 0.3 * normal(1, 3, 3, channels, 4)

    def outer(x, k, convolve):
        def inner(k):
            y = jnp.tanh(convolve(x, k, padding=1))
            return jnp.tanh(convolve(y, k[..., :1, :].swapaxes(2, 3))).sum()

        return jnp.sin(jax.grad(inner)(k)).sum()

    def grads(convolve):
        return jax.jit(jax.grad(lambda x, k: outer(x, k, convolve), (0, 1)))(x, k)

    for ours, theirs in zip(
        grads(layers.conv_on_cpu), grads(layers.conv_by_xla), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("channels", [2, 9])
@pytest.mark.parametrize("axes", [(0, 0), (None, 0), (0, None)])
def test_conv_vmaps(channels, axes):
    x, k = normal(0, 3, 2, 6, 6, channels), normal(1, 3, 3, 3, channels, 4)
    x, k = (a if axis == 0 else a[0] for a, axis in zip((x, k), axes, strict=True))

    def grads(convolve):
        def loss(x, k):
            return jnp.sin(convolve(x, k)).sum()

        return jax.jit(jax.vmap(jax.value_and_grad(loss, (0, 1)), axes))

    ours = grads(layers.conv_on_cpu)
    for a, b in zip(
        jax.tree.leaves(ours(x, k)),
        jax.tree.leaves(grads(layers.conv_by_xla)(x, k)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
    if axes[1] == 0:
        # Batched kernels must not become grouped convolutions.
        jaxpr = str(jax.make_jaxpr(ours)(x, k))
        assert "feature_group_count=3" not in jaxpr
        assert "batch_group_count=3" not in jaxpr


@pytest.mark.parametrize(("cache", "images"), [(1, 1), (5, 4), (11, 6), (12, 12)])
def test_kernel_gradient_sums_over_as_many_images_as_the_cache_holds(
    monkeypatch, cache, images
):
    x, k = normal(0, 12, 7, 7, 4), normal(1, 3, 3, 4, 5)
    monkeypatch.setattr(
        layers, "_CACHE", cache * 7 * 7 * 3 * (4 + 5) * x.dtype.itemsize
    )
    program = jax.make_jaxpr(jax.grad(lambda k: layers.conv_on_cpu(x, k).sum()))(k)
    assert f"f32[{images * 7 * 7},12]" in str(program)


def test_kernel_gradient_of_a_narrow_type_is_summed_in_float32(monkeypatch):
    monkeypatch.setattr(layers, "_CACHE", 1)
    x, k = jnp.ones((600, 5, 5, 2), jnp.bfloat16), jnp.ones((3, 3, 2, 2), jnp.bfloat16)
    found = jax.grad(lambda k: layers.conv_on_cpu(x, k).sum())(k)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found[1, 1].astype(float), 600 * 5 * 5, rtol=0.01)


@pytest.mark.parametrize("devices", ["1", "4"])
def test_kernel_gradient_of_a_divided_batch_exchanges_kernels_alone(devices):
    # Four processes with a device each, or one with four.
    code = """if True:
        import re, sys, jax, jax.numpy as jnp
        from ot_dd.models import layers
        jax.config.update("jax_num_cpu_devices", 4)
        jax.local_device_count = lambda: int(sys.argv[1])
        layers._CACHE = 2**14
        mesh = jax.make_mesh((4,), ("data",), (jax.sharding.AxisType.Auto,))
        x, k = jnp.ones((64, 16, 16, 8)), jnp.ones((3, 3, 8, 8))
        x = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
        k = jax.device_put(k, jax.NamedSharding(mesh, jax.P()))
        loss = lambda k, x: jnp.sin(layers.conv_on_cpu(x, k)).sum()
        program = jax.jit(jax.grad(loss)).lower(k, x).compile().as_text()
        assert (" while(" in program) == (sys.argv[1] == "1")
        print(re.findall("all-[a-z]+|collective-permute", program))
    """
    found = subprocess.run(
        [sys.executable, "-c", code, devices],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert "all-reduce" in found.stdout
    assert not {"gather", "permute", "to"} & set(re.findall(r"[a-z]+", found.stdout))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_conv_has_the_parameters_of_linen(groups):
    x = normal(0, 2, 7, 7, 4)
    theirs = nn.Conv(4, (3, 3), padding=1, feature_group_count=groups)
    variables = theirs.init(jax.random.key(1), x)
    ours = layers.Conv(4, padding=1, groups=groups)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(
        jnp.shape, ours.init(jax.random.key(1), x)
    )
    np.testing.assert_allclose(
        ours.apply(variables, x), theirs.apply(variables, x), rtol=1e-4, atol=1e-4
    )


def test_conv_takes_the_xla_path_off_cpu(monkeypatch):
    x = normal(0, 2, 7, 7, 4)
    conv = layers.Conv(5)
    variables = conv.init(jax.random.key(1), x)
    cpu = jax.make_jaxpr(conv.apply)(variables, x)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    xla = jax.make_jaxpr(conv.apply)(variables, x)
    assert "custom_vjp" in str(cpu)
    assert "custom_vjp" not in str(xla)
    assert "conv_general_dilated" in str(xla)


@pytest.mark.parametrize("groups", [None, 1, 2, 6])
def test_group_norm_matches_linen(groups):
    x = 3 * normal(0, 2, 5, 4, 6) + 1
    ours = layers.GroupNorm(groups)
    theirs = nn.GroupNorm(groups, epsilon=1e-5, group_size=None if groups else 1)
    variables = {"params": {"scale": normal(1, 6), "bias": normal(2, 6)}}

    def grads(module):
        return jax.grad(lambda x: jnp.sin(module.apply(variables, x)).sum())(x)

    np.testing.assert_allclose(
        ours.apply(variables, x), theirs.apply(variables, x), rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(grads(ours), grads(theirs), rtol=1e-3, atol=1e-4)


def test_group_norm_of_a_constant_image_is_its_bias():
    x = jnp.full((2, 4, 4, 3), 7.3)
    params = {"params": {"scale": jnp.ones(3), "bias": jnp.arange(3.0)}}
    module = layers.GroupNorm()
    np.testing.assert_allclose(
        module.apply(params, x), jnp.broadcast_to(jnp.arange(3.0), x.shape), atol=1e-2
    )
    grad = jax.grad(lambda x: module.apply(params, x).sum())(x)
    assert np.isfinite(grad).all()


def test_instance_norm_refuses_one_pixel():
    with pytest.raises(ValueError, match="1x1 feature map"):
        layers.GroupNorm().init(jax.random.key(0), jnp.zeros((2, 1, 1, 3)))


def test_norm_refuses_an_unknown_kind():
    with pytest.raises(ValueError, match="norm='layer'"):
        layers.norm("layer", train=False, name="norm")


@pytest.mark.parametrize("size", [8, 7])
def test_avg_pool_matches_linen(size):
    x = normal(0, 2, size, size, 3)
    np.testing.assert_allclose(
        layers.avg_pool(x), nn.avg_pool(x, (2, 2), (2, 2)), rtol=1e-5, atol=1e-6
    )


def test_avg_pool_refuses_one_pixel():
    with pytest.raises(ValueError, match="1x4"):
        layers.avg_pool(jnp.zeros((1, 1, 4, 3)))


@pytest.mark.parametrize("machine", ["cpu", "tpu"])
@pytest.mark.parametrize(
    ("size", "strides", "padding"), [(3, 2, 1), (3, 2, 0), (2, 2, 0)]
)
def test_max_pool_matches_linen(size, strides, padding, machine):
    x = normal(0, 2, 9, 8, 3)
    pads = ((padding, padding),) * 2

    def theirs(x):
        return nn.max_pool(x, (size, size), (strides, strides), pads)

    def ours(x):
        with platform.compiling_for(machine):
            return layers.max_pool(x, size, strides, padding)

    np.testing.assert_array_equal(ours(x), theirs(x))
    np.testing.assert_allclose(
        *(jax.grad(lambda x, f=f: jnp.sin(f(x)).sum())(x) for f in (ours, theirs)),
        rtol=1e-6,
    )


def test_space_to_depth_order_and_inverse():
    x = jnp.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    y = layers.space_to_depth(x, 2)
    assert y.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(y[0, 1, 2, 6:9], x[0, 3, 4])  # row 1, column 0
    np.testing.assert_array_equal(layers.depth_to_space(y, 2), x)


def test_bfloat16_stays_bfloat16():
    x = jnp.ones((1, 8, 8, 4), jnp.bfloat16)
    for module in (layers.Conv(4), layers.GroupNorm(), layers.PatchEmbed(2, 4)):
        params = module.init(jax.random.key(0), x)
        params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
        assert module.apply(params, x).dtype == jnp.bfloat16


def test_a_depthwise_gradient_is_summed_wide():
    x = jax.random.normal(jax.random.key(0), (16, 16, 16, 8)) + 1
    x = x.astype(jnp.bfloat16)
    module = layers.Conv(8, groups=8, use_bias=False)
    params = module.init(jax.random.key(1), x.astype(jnp.float32))

    def gradient(dtype):
        def loss(params):
            y = module.apply(params, x.astype(dtype))
            return jnp.mean(y.astype(jnp.float32) ** 2)

        narrow = jax.tree.map(lambda p: p.astype(dtype), params)
        return jax.jit(jax.grad(loss))(narrow)["params"]["kernel"].astype(jnp.float32)

    exact = gradient(jnp.float32)
    error = jnp.linalg.norm(gradient(jnp.bfloat16) - exact) / jnp.linalg.norm(exact)
    assert error < 0.02
