"""Operations against counts by hand, XLA's and fvcore-like sums of whole networks."""

import jax
import jax.numpy as jnp
import pytest

from ot_dd import models, ot
from ot_dd.flops import flops


def test_a_product_counts_twice_its_multiplications():
    x, y = jnp.zeros((3, 5)), jnp.zeros((5, 7))
    assert flops(jnp.dot, x, y) == 2 * 3 * 5 * 7
    assert flops(jax.jit(jnp.dot), x, y) == 2 * 3 * 5 * 7
    assert flops(jax.vmap(jnp.dot), jnp.zeros((4, 3, 5)), jnp.zeros((4, 5, 7))) == 840


def test_loops_count_their_turns_and_branches_the_dearest():
    x = jnp.zeros((8, 8))

    def loop(x):
        return jax.lax.scan(lambda c, _: (c @ c, None), x, length=11)[0]

    assert flops(loop, x) == 11 * 2 * 8**3
    assert flops(lambda x: jax.lax.fori_loop(0, 11, lambda _, c: c @ c, x), x) >= (
        11 * 2 * 8**3
    )

    def branch(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x, x)

    assert 2 * 8**3 <= flops(branch, x) < 2 * 8**3 + 100

    def sometimes(x):
        with jax.named_scope("share_1_4"):
            return branch(x)

    assert 8**3 / 2 <= flops(sometimes, x) < 8**3 / 2 + 100


@pytest.mark.parametrize("grad", ["envelope", "unroll"])
def test_sinkhorn_counts_its_iterations(grad):
    cost = jnp.ones((30, 40))

    def value(cost, num_iters):
        return ot.solve(cost, epsilon=0.5, num_iters=num_iters, grad=grad).value

    few, many = (flops(jax.grad(lambda c, n=n: value(c, n)), cost) for n in (10, 210))
    # Two products with the kernel an iteration, at the least.
    assert many - few > 200 * 2 * 2 * 30 * 40 * 0.9
    assert many - few < 200 * 60 * 30 * 40


def test_a_strided_convolution_costs_three_times_its_forward_pass():
    x, kernel = jnp.zeros((4, 16, 16, 8)), jnp.zeros((3, 3, 8, 8))
    for stride in (1, 2):

        def forward(x, kernel, stride=stride):
            return jax.lax.conv_general_dilated(
                x, kernel, (stride, stride), "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            ).sum()  # fmt: skip

        once = flops(forward, x, kernel)
        both = flops(jax.grad(forward, (0, 1)), x, kernel)
        assert 1.8 * once < both < 3.4 * once, (stride, both / once)


def test_the_gradient_of_a_gradient_costs_no_more_for_its_padding():
    # Under `vmap` over kernels, as influence guidance takes it over checkpoints.
    x, kernels = jnp.zeros((1, 32, 32, 8)), jnp.zeros((4, 3, 3, 8, 8))

    def forward(x, kernel):
        out = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.sum(out**2)

    def of_gradients(x):
        gradients = jax.vmap(jax.grad(forward, 1), (None, 0))(x, kernels)
        return jnp.sum(gradients**2)

    once = flops(forward, x, kernels[0])
    # Forward and one gradient, and for each of these two more, at four kernels.
    assert 4 * 4 * once < flops(jax.grad(of_gradients), x) < 4 * 8 * once


def test_a_gradient_costs_three_forward_passes():
    module = models.create("resnet18", num_classes=1000, stem="imagenet")
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x), image)

    def forward(variables, x):
        return module.apply(variables, x, train=False).sum()

    once = flops(forward, variables, image)
    # 1.814e9 multiplications (torchvision), and a little for all the rest.
    assert once == pytest.approx(2 * 1.814e9, rel=0.02)
    both = flops(jax.value_and_grad(forward), variables, image)
    assert both == pytest.approx(3 * once, rel=0.06)


def test_dit_xl_2_is_as_its_paper_says():
    module = models.create("dit_xl_2", num_classes=1000)
    z = jax.ShapeDtypeStruct((1, 32, 32, 4), jnp.float32)
    row = jax.ShapeDtypeStruct((1,), jnp.float32)
    label = jax.ShapeDtypeStruct((1,), jnp.int32)
    key = jax.random.key(0)
    variables = jax.eval_shape(lambda *a: module.init(key, *a), z, row, label)
    found = flops(module.apply, variables, z, row, label)
    # Peebles and Xie count 118.6 G multiplications as FLOPs.
    assert found == pytest.approx(2 * 118.6e9, rel=0.05)


def test_a_partly_manual_map_counts_the_devices_of_its_axes():
    """Of a mesh of 2 x 2 it has one axis: two halves of the rows, not four."""
    mesh = jax.sharding.AbstractMesh(
        (2, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2
    )
    rows = jax.sharding.PartitionSpec("a")
    fn = jax.shard_map(
        lambda x: x * 2, mesh=mesh, in_specs=rows, out_specs=rows, axis_names={"a"},
        check_vma=False,
    )  # fmt: skip
    with jax.sharding.use_abstract_mesh(mesh):
        assert flops(fn, jax.ShapeDtypeStruct((8,), jnp.float32)) == 8
