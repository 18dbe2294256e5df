import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ot_dd import models

SMALL = [
    ("alexnet", {"stem": "cifar", "width": 4}, 16),
    ("convnet3", {"width": 8}, 16),
    ("convnet3", {"width": 8, "norm": "batch", "depth": 2}, 9),
    ("convnet6", {"width": 8}, 64),
    ("mobilenet_v2", {"stem": "cifar", "width_mult": 0.25}, 16),
    ("resnet10", {"stem": "cifar", "width": 4}, 16),
    ("resnet18", {"width": 4, "blocks": (1, 2)}, 32),
    ("resnet_ap10", {"stem": "cifar", "width": 4}, 16),
    ("resnet_ap10", {"width": 4, "blocks": (1, 1)}, 32),
    ("vit", {"patch": 4, "dim": 16, "depth": 2, "heads": 2}, 16),
    ("resnet50", {"stem": "cifar", "width": 4, "blocks": (1, 2)}, 16),
    ("wide_resnet50_2", {"stem": "cifar", "width": 4, "blocks": (1, 1)}, 16),
    ("convnext_tiny", {"dims": (8, 16), "depths": (1, 1), "patch": 2}, 17),
    ("deit_tiny", {"patch": 4, "dim": 16, "depth": 2, "heads": 2}, 16),
    ("densenet121", {"stem": "cifar", "blocks": (1, 2), "growth": 4}, 16),
    ("efficientnet_b0", {"stem": "cifar", "width_mult": 0.25}, 16),
    ("efficientnet_lite0", {"stem": "cifar", "width_mult": 0.25}, 16),
    ("shufflenet_v2_x0_5", {"stem": "cifar", "channels": (8, 8, 16, 16, 16)}, 16),
    (
        "swin_t",
        {"patch": 2, "dim": 8, "depths": (2, 2), "heads": (2, 2), "window": 3},
        18,
    ),
]


def count(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize(("name", "options", "size"), SMALL)
def test_logits_and_features(name, options, size):
    module = models.create(name, num_classes=5, **options)
    x = jax.random.normal(jax.random.key(0), (2, size, size, 1))
    variables = jax.jit(module.init)(jax.random.key(1), x)

    @jax.jit
    def apply(variables, x):
        return module.apply(variables, x, features=True), module.apply(variables, x)

    (logits, features), alone = apply(variables, x)
    assert logits.shape == (2, 5)
    assert features.ndim == 2 and features.shape[0] == 2
    # The features are the input of the last linear layer.
    last = max(k for k in variables["params"] if k.startswith("fc"))
    fc = variables["params"][last]
    np.testing.assert_allclose(
        features @ fc["kernel"] + fc["bias"], logits, rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(alone, logits, rtol=1e-4, atol=1e-4)
    # One image's logits do not depend on the others: no batch statistics in eval mode.
    other = apply(variables, x.at[1].set(0.5))[1]
    np.testing.assert_allclose(other[0], logits[0], rtol=1e-3, atol=1e-4)
    assert not np.allclose(other[1], logits[1], rtol=1e-3, atol=0)


GENERATORS = [
    ("autoencoder_kl", {"channels": (8, 16), "groups": 4, "blocks": 1}, 16),
    ("autoencoder_small", {"channels": (8, 16), "groups": 4}, 16),
    ("dit", {"num_classes": 3, "dim": 16, "depth": 2, "heads": 2}, 16),
]


@pytest.mark.parametrize(("name", "options", "size"), SMALL + GENERATORS)
def test_everything_is_float32_with_x64_too(name, options, size):
    with jax.enable_x64(True):
        module = models.create(name, **{"num_classes": 5, **options})
        x = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
        rows = () if name != "dit" else (jnp.zeros(2, jnp.float32), jnp.zeros(2, int))
        key = jax.random.key(0)
        made = jax.eval_shape(lambda x: module.init_with_output(key, x, *rows), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", ["resnet10", "convnet3"])
def test_batch_norm_updates_only_when_training(name):
    module = models.create(name, num_classes=3, norm="batch", **_tiny(name))
    x = 2 * jax.random.normal(jax.random.key(0), (4, 16, 16, 3)) + 1
    variables = jax.jit(module.init)(jax.random.key(1), x)

    @jax.jit
    def train(variables, x):
        return module.apply(variables, x, train=True, mutable=["batch_stats"])

    logits, updated = train(variables, x)
    before = jax.tree.leaves(variables["batch_stats"])
    after = jax.tree.leaves(updated["batch_stats"])
    assert all(not np.allclose(a, b) for a, b in zip(before, after, strict=True))
    assert not np.allclose(logits, jax.jit(module.apply)(variables, x))


def _tiny(name):
    if name.startswith("convnet"):
        return {"width": 4}
    return {"stem": "cifar", "width": 4, "blocks": (1, 1)}


# Totals of torchvision's state dicts without running statistics; ConvNet-6 and DiT's
# totals are counted from the papers' layer tables.
@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("alexnet", 61_100_840),
        ("convnet6", 2_792_040),
        ("mobilenet_v2", 3_504_872),
        ("resnet18", 11_689_512),
        ("resnet50", 25_557_032),
        ("vit", 86_567_656),
        ("wide_resnet50_2", 68_883_240),
    ],
)
def test_parameter_counts(name, total):
    size = 256 if name == "convnet6" else 224
    x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    module = models.create(name, num_classes=1000)
    assert count(jax.eval_shape(module.init, jax.random.key(0), x)) == total


@pytest.mark.parametrize(
    ("name", "options", "size", "message"),
    [
        ("alexnet", {}, 32, "at least 63"),
        ("convnet6", {"width": 4}, 32, "too small|feature map"),
        ("resnet_ap10", {"stem": "cifar", "width": 4}, 8, "1x1 feature map"),
        ("resnet18", {"stem": "tiny"}, 32, "stem='tiny'"),
        ("autoencoder_small", {"channels": (12, 24)}, 16, "8 groups do not divide 12"),
        ("vit", {"patch": 5, "dim": 8, "depth": 1, "heads": 2}, 16, "patch=5"),
        ("vit", {"patch": 4, "dim": 8, "depth": 1, "heads": 3}, 16, "heads=3"),
    ],
)
def test_unusable_sizes_are_named(name, options, size, message):
    module = models.create(name, num_classes=2, **options)
    x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(module.init, jax.random.key(0), x)


def test_trains_inside_scan_and_vmap():
    module = models.create("convnet3", num_classes=2, depth=2, width=8)
    x = jax.random.normal(jax.random.key(0), (16, 8, 8, 1))
    y = jnp.arange(16) % 2
    x = x + 2.0 * y[:, None, None, None] * jnp.linspace(-1, 1, 8)[:, None]

    def loss(params):
        logits = module.apply({"params": params}, x, train=True)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1).mean()

    def train(key):
        params = module.init(key, x)["params"]

        def step(params, _):
            value, grads = jax.value_and_grad(loss)(params)
            return jax.tree.map(lambda p, g: p - 0.5 * g, params, grads), value

        return jax.lax.scan(step, params, None, length=60)[1]

    losses = jax.jit(jax.vmap(train))(jax.random.split(jax.random.key(1), 2))
    assert (losses[:, -1] < 0.5 * losses[:, 0]).all()


def test_gradients_of_shards_sum():
    # With replicated parameters, `shard_map` sums the gradients of its shards.
    module = models.create("convnet3", num_classes=2, depth=1, width=8)
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))
    params = module.init(jax.random.key(1), x)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def grad(params, x):
        return jax.grad(lambda p: jnp.square(module.apply(p, x)).sum())(params)

    specs = (jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("data"))
    sharded = jax.shard_map(grad, mesh=mesh, in_specs=specs, out_specs=specs[0])
    for a, b in zip(
        jax.tree.leaves(jax.jit(sharded)(params, x)),
        jax.tree.leaves(jax.jit(grad)(params, x)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
