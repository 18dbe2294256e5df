"""Convolution, normalisation, pooling and attention that several networks share.

`Conv` exists because XLA on CPU is fast, inside `lax.scan`, at a plain convolution, and
many times slower at the convolutions that autodiff makes of it (seen with
jaxlib 0.10), and slow at the grouped ones that `vmap` over kernels makes. On CPU its
derivative by the images is therefore a plain convolution too, that by the kernel and its
`vmap` are matrix products; elsewhere it is the ordinary convolution. Parameters are those
of `flax.linen.Conv`.

No module has a dtype field: statistics are float32, and the rest follows the dtype of
the images and parameters that the caller passes (cast both for bfloat16).
"""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ot_dd import platform
from ot_dd.vma import vary_like

Padding = str | int | Sequence[tuple[int, int]]

# The He et al. (2015) initialisation that torchvision's networks use for kernels.
he_normal_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def _explicit_padding(padding: Padding, size, kernel_size, strides):
    """Returns ((top, bottom), (left, right)) for a string, an int or pairs."""
    if isinstance(padding, str):
        pads = lax.padtype_to_pads(size, kernel_size, (strides, strides), padding)
        return tuple(pads)
    if isinstance(padding, int):
        return ((padding, padding), (padding, padding))
    return tuple(tuple(pad) for pad in padding)


def _shifted(x, kernel_size, strides):
    """Yields the strided views `[b, oh, ow, c]` of padded `x`, row by row of taps."""
    (kh, kw), (h, w) = kernel_size, x.shape[1:3]
    oh, ow = (h - kh) // strides + 1, (w - kw) // strides + 1
    for i in range(kh):
        for j in range(kw):
            rows = slice(i, i + strides * (oh - 1) + 1, strides)
            columns = slice(j, j + strides * (ow - 1) + 1, strides)
            yield x[:, rows, columns]


def conv_as_matmul(
    x: jax.Array, kernel: jax.Array, *, strides: int = 1, padding: Padding = "SAME"
) -> jax.Array:
    """Convolves by one matrix product of shifted views, with no convolution primitive.

    A depthwise kernel is a sum of shifted products. Gradients of any order
    and `vmap` over kernels are matrix products too.

    Args:
      x: images `[b, h, w, c]`.
      kernel: `[kh, kw, c, o]`, or `[kh, kw, 1, c]` for a depthwise convolution.
      strides: the stride of both axes.
      padding: "SAME", "VALID", one int for all sides, or pairs for height and width.

    Returns:
      `[b, oh, ow, o]`, equal to `lax.conv_general_dilated` up to rounding.
    """
    kh, kw, in_features, features = kernel.shape
    pads = _explicit_padding(padding, x.shape[1:3], (kh, kw), strides)
    if any(pad != (0, 0) for pad in pads):
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    if in_features != x.shape[-1]:
        taps = kernel.reshape(kh * kw, features)
        # Wide, as its gradient sums over all pixels: narrow sums stand still.
        wide = jnp.promote_types(x.dtype, jnp.float32)
        views, taps = _shifted(x.astype(wide), (kh, kw), strides), taps.astype(wide)
        return sum(v * tap for v, tap in zip(views, taps, strict=True)).astype(x.dtype)
    b, h, w, c = x.shape
    if kh == kw == strides and h % kh == 0 and w % kw == 0:
        # Disjoint patches (1x1 kernels, patch embeddings) are a reshape.
        columns = space_to_depth(x, kh)
    else:
        columns = jnp.concatenate(list(_shifted(x, (kh, kw), strides)), -1)
    oh, ow = columns.shape[1:3]
    columns = columns.reshape(b * oh * ow, kh * kw * c)
    return (columns @ kernel.reshape(-1, features)).reshape(b, oh, ow, features)


def conv_by_xla(
    x: jax.Array, kernel: jax.Array, *, strides: int = 1, padding: Padding = "SAME"
) -> jax.Array:
    """Convolves by `lax.conv_general_dilated`; arguments as in `conv_as_matmul`."""
    pads = _explicit_padding(padding, x.shape[1:3], kernel.shape[:2], strides)
    return lax.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // kernel.shape[2],
    )


# Bytes that the operands of a matrix product may take to stay in a core's cache.
_CACHE = 2**19

# `_convolve` and `_kernel_gradient` are each other's derivatives, with stride 1 and
# `pads` less than the kernel, so that gradients of every order stay plain
# convolutions and matrix products. Reverse mode only, as with any `custom_vjp`.


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x, kernel, pads):
    """Convolves `[b, h, w, c]` with `[kh, kw, c, o]` and pads ((t, b), (l, r))."""

    @jax.custom_batching.custom_vmap
    def convolve(x, kernel):
        return conv_by_xla(x, kernel, padding=pads)

    @convolve.def_vmap
    def _(axis_size, batched, x, kernel):
        if not batched[1]:
            y = _convolve(x.reshape(-1, *x.shape[2:]), kernel, pads)
            return y.reshape(axis_size, -1, *y.shape[1:]), True
        axes = tuple(0 if b else None for b in batched)
        return jax.vmap(partial(conv_as_matmul, padding=pads), axes)(x, kernel), True

    return convolve(x, kernel)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _kernel_gradient(x, g, pads):
    """Correlates `x [b, h, w, c]` and `g [b, oh, ow, o]` into `[kh, kw, c, o]`.

    XLA is slow on CPU at the convolution that this is, whose kernel is as large as an
    image. Here it is a sum of matrix products, each of as many images as a core's cache
    holds the operands of: `x` shifted along the width and `g` along the height, or, in
    first layers, where that copies less, `x` along both.
    """
    (top, bottom), (left, right) = pads
    kh = x.shape[1] + top + bottom - g.shape[1] + 1
    kw = x.shape[2] + left + right - g.shape[2] + 1
    (b, h, _, c), (_, oh, ow, o) = x.shape, g.shape
    wide = jnp.promote_types(x.dtype, jnp.float32)  # A narrow sum would stand still.
    # Values that an image's operands take: both shifted, or `x` alone.
    both, alone = h * ow * (kw * c + kh * o), oh * ow * (kh * kw * c + o)
    x_alone = alone < both

    def correlate(x, g):
        x = jnp.pad(x, ((0, 0), (0, 0), (left, right), (0, 0)))
        if x_alone:
            x = jnp.pad(x, ((0, 0), (top, bottom), (0, 0), (0, 0)))
            xs, gs = list(_shifted(x, (kh, kw), 1)), [g]
        else:
            g = jnp.pad(g, ((0, 0), (kh - 1 - top, kh - 1 - bottom), (0, 0), (0, 0)))
            xs = list(_shifted(x, (1, kw), 1))
            gs = [g[:, i : i + h] for i in reversed(range(kh))]
        xs, gs = (
            jnp.concatenate(views, -1).reshape(-1, sum(v.shape[-1] for v in views))
            for views in (xs, gs)
        )
        total = jnp.matmul(xs.T, gs, preferred_element_type=wide)
        if x_alone:
            return total.reshape(kh, kw, c, o)
        return total.reshape(kw, c, kh, o).transpose(2, 0, 1, 3)

    parts = b // _images_at_once(b, min(both, alone) * x.dtype.itemsize)
    if parts == 1:
        total = correlate(x, g)
    else:
        # The batch stays the leading axis: each part is of all processes' images.
        xs, gs = (a.reshape(-1, parts, *a.shape[1:]) for a in (x, g))
        zeros = vary_like(jnp.zeros((kh, kw, c, o), wide), x, g)
        total = lax.fori_loop(
            0, parts, lambda i, total: total + correlate(xs[:, i], gs[:, i]), zeros
        )
    return total.astype(x.dtype)


def _images_at_once(batch: int, size: int) -> int:
    """Returns a divisor of the batch: most images of `size` bytes that a cache holds.

    Processes with a device each, which may share the batch, have as many each. Several
    devices of a process take the batch at once: matrix products in their loops wait for
    threads that other devices' collectives hold (seen with jaxlib 0.10).
    """
    if jax.local_device_count() > 1:
        return batch
    devices = jax.device_count()
    divisors = [n for n in range(1, batch + 1) if batch % n == 0]
    shared = [n for n in divisors if n % devices == 0] or divisors
    return max([n for n in shared if n * size <= devices * _CACHE] or shared[:1])


def _image_gradient(g, kernel, pads):
    """Returns the cotangent of `x` in `_convolve(x, kernel, pads)`."""
    flipped = kernel[::-1, ::-1].swapaxes(2, 3)
    full = tuple(
        (k - 1 - before, k - 1 - after)
        for k, (before, after) in zip(kernel.shape, pads, strict=False)
    )
    return _convolve(g, flipped, full)


_convolve.defvjp(
    lambda x, kernel, pads: (_convolve(x, kernel, pads), (x, kernel)),
    lambda pads, saved, g: (
        _image_gradient(g, saved[1], pads),
        _kernel_gradient(saved[0], g, pads),
    ),
)
_kernel_gradient.defvjp(
    lambda x, g, pads: (_kernel_gradient(x, g, pads), (x, g)),
    lambda pads, saved, kernel: (
        _image_gradient(saved[1], kernel, pads),
        _convolve(saved[0], kernel, pads),
    ),
)


def conv_on_cpu(
    x: jax.Array, kernel: jax.Array, *, strides: int = 1, padding: Padding = "SAME"
) -> jax.Array:
    """Convolves fast inside loops on CPU; arguments as in `conv_as_matmul`.

    Stride 1 is a plain convolution with derivatives of its own; strides, 1x1 and
    depthwise kernels are `conv_as_matmul`. Forward-mode derivatives of the former raise,
    as they do for any `jax.custom_vjp`.
    """
    size = kernel.shape[:2]
    pads = _explicit_padding(padding, x.shape[1:3], size, strides)
    narrow = all(max(pad) < k for pad, k in zip(pads, size, strict=True))
    dense = kernel.shape[2] == x.shape[-1]
    if strides == 1 and size != (1, 1) and narrow and dense:
        return _convolve(*vary_like((x, kernel), x, kernel), pads)
    return conv_as_matmul(x, kernel, strides=strides, padding=padding)


class Conv(nn.Module):
    """`flax.linen.Conv` for images `[b, h, w, c]`, fast on CPU inside loops.

    Attributes:
      features: output channels.
      kernel_size: height and width.
      strides: the stride of both axes.
      padding: "SAME", "VALID", one int for all sides, or pairs for height and width.
      groups: channel groups; 1, or the number of channels for a depthwise convolution
        (other values take the slow path on CPU: no network here has them).
      use_bias: whether a bias follows.
      kernel_init: initialiser of the kernel `[kh, kw, c // groups, features]`.
    """

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    strides: int = 1
    padding: Padding = "SAME"
    groups: int = 1
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolves `[b, h, w, c]` into `[b, oh, ow, features]`."""
        c = x.shape[-1]
        shape = (*self.kernel_size, c // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        x, kernel = nn.dtypes.promote_dtype(x, kernel)
        depthwise = self.groups == c == self.features
        on_cpu = platform.backend() == "cpu" and (self.groups == 1 or depthwise)
        convolve = conv_on_cpu if on_cpu else conv_by_xla
        y = convolve(x, kernel, strides=self.strides, padding=self.padding)
        if self.use_bias:
            zeros = nn.initializers.zeros
            bias = self.param("bias", zeros, (self.features,), jnp.float32)
            y = y + bias.astype(y.dtype)
        return y


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He, 2018) as one multiply-add per element.

    Mean and mean of squares are one pass over the input, and the affine part is folded
    into the scale: `x * a + b` with `a, b [b, 1, 1, c]`. As with any single-pass
    variance, a channel whose mean is thousands of times its deviation loses digits.

    Attributes:
      groups: number of groups; None is one group per channel: the instance norm (Ulyanov et
        al., 2016) of the dataset-distillation literature's ConvNets.
      epsilon: added to the variance.
    """

    groups: int | None = None
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises `[b, h, w, c]`; the result has the input's dtype."""
        c = x.shape[-1]
        if self.groups is None and x.shape[1:3] == (1, 1):
            raise ValueError(
                "instance norm of a 1x1 feature map is constant: the images are too "
                "small for this depth. Use norm='batch', stem='cifar' or larger images."
            )
        if c % (self.groups or 1):
            raise ValueError(f"{self.groups} groups do not divide {c} channels")
        scale = self.param("scale", nn.initializers.ones, (c,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (c,), jnp.float32)
        y = x.astype(jnp.float32)
        mean = y.mean((1, 2), keepdims=True)
        square = jnp.square(y).mean((1, 2), keepdims=True)
        if self.groups is not None:
            mean, square = (_group_mean(m, self.groups) for m in (mean, square))
        variance = jnp.maximum(square - jnp.square(mean), 0.0)
        a = lax.rsqrt(variance + self.epsilon) * scale
        return (y * a + (bias - mean * a)).astype(x.dtype)


def _group_mean(moment, groups):
    """Averages `[b, 1, 1, c]` within groups of channels, keeping the shape."""
    b, c = moment.shape[0], moment.shape[-1]
    grouped = moment.reshape(b, 1, 1, groups, c // groups).mean(-1)
    return jnp.repeat(grouped, c // groups, -1)


def norm(kind: str, *, train: bool, name: str, epsilon: float = 1e-5):
    """Makes the normalisation layer of a classifier.

    Args:
      kind: "instance", "batch" (momentum 0.9) or "none".
      train: whether a batch norm uses, and updates, the batch's statistics.
      name: the layer's parameter name.
      epsilon: added to the variance.

    Returns:
      A callable on `[b, h, w, c]`.

    Raises:
      ValueError: if `kind` is unknown.
    """
    if kind == "instance":
        return GroupNorm(epsilon=epsilon, name=name)
    if kind == "batch":
        return nn.BatchNorm(
            use_running_average=not train, momentum=0.9, epsilon=epsilon, name=name
        )
    if kind == "none":
        return lambda x: x
    raise ValueError(f"norm={kind!r}: expected 'instance', 'batch' or 'none'.")


def check_stem(stem: str) -> None:
    """Raises ValueError unless `stem` is "imagenet" or "cifar"."""
    if stem not in ("imagenet", "cifar"):
        raise ValueError(f"stem={stem!r}: expected 'imagenet' or 'cifar'.")


def check_size(name: str, x: jax.Array, least: int) -> None:
    """Raises ValueError if the images `[b, h, w, c]` have fewer pixels a side."""
    if min(x.shape[1:3]) < least:
        raise ValueError(
            f"{name} needs images of at least {least} pixels, "
            f"got {x.shape[1]}x{x.shape[2]}."
        )


def check_autoencoder_input(module, x: jax.Array) -> None:
    """Raises ValueError unless images `[b, h, w, c]` fit `factor`, `image_channels`."""
    h, w, c = x.shape[1:]
    if h % module.factor or w % module.factor:
        raise ValueError(
            f"the autoencoder downsamples by {module.factor}, which does not divide "
            f"the {h}x{w} image: pad or resize it."
        )
    if c != module.image_channels:
        raise ValueError(
            f"image_channels={module.image_channels}, but the images have {c}."
        )


def avg_pool(x: jax.Array) -> jax.Array:
    """Averages 2x2 blocks, `[b, h, w, c] -> [b, h // 2, w // 2, c]`.

    An odd last row or column is dropped, as by PyTorch's `AvgPool2d(2)`.

    Raises:
      ValueError: if a side is shorter than 2.
    """
    h, w = x.shape[1:3]
    if min(h, w) < 2:
        raise ValueError(
            f"cannot halve a {h}x{w} feature map: the images are too small for this "
            "depth. Use a shallower network, stem='cifar' or larger images."
        )
    # A sum of strided views: on CPU, a reshape and a mean cost three times as much.
    x = x[:, : h // 2 * 2, : w // 2 * 2]
    return 0.25 * sum(_shifted(x, (2, 2), 2))


def max_pool(x: jax.Array, size: int, strides: int, padding: int = 0) -> jax.Array:
    """Max pooling; on CPU as an elementwise maximum of shifted views.

    `nn.max_pool`'s gradient is a scatter that XLA on CPU runs slowly inside loops; on
    TPU the shifted views cost more than the convolutions around them.

    Args:
      x: images `[b, h, w, c]`.
      size: side of the window.
      strides: the stride of both axes.
      padding: border on every side, filled with minus infinity.

    Returns:
      `[b, oh, ow, c]`.
    """
    p = (padding, padding)
    if platform.backend() != "cpu":
        return nn.max_pool(x, (size, size), (strides, strides), (p, p))
    x = jnp.pad(x, ((0, 0), p, p, (0, 0)), constant_values=-jnp.inf)
    views = _shifted(x, (size, size), strides)
    y = next(views)
    for view in views:
        y = jnp.maximum(y, view)
    return y


def space_to_depth(x: jax.Array, factor: int) -> jax.Array:
    """Moves `factor` x `factor` blocks into channels, ordered (row, column, channel).

    `[b, h, w, c] -> [b, h / factor, w / factor, factor^2 c]`.
    """
    b, h, w, c = x.shape
    x = x.reshape(b, h // factor, factor, w // factor, factor, c).swapaxes(2, 3)
    return x.reshape(b, h // factor, w // factor, factor * factor * c)


def depth_to_space(x: jax.Array, factor: int) -> jax.Array:
    """Inverts `space_to_depth`."""
    b, h, w, c = x.shape
    c //= factor * factor
    x = x.reshape(b, h, w, factor, factor, c).swapaxes(2, 3)
    return x.reshape(b, h * factor, w * factor, c)


class PatchEmbed(nn.Module):
    """Linear embedding of disjoint patches, `[b, h, w, c] -> [b, h / p, w / p, dim]`.

    Attributes:
      patch: side `p` of a patch; must divide the image.
      dim: channels of the result.
    """

    patch: int
    dim: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Embeds; raises ValueError if `patch` does not divide the image."""
        p, (h, w, c) = self.patch, x.shape[1:]
        if h % p or w % p:
            raise ValueError(f"patch={p} does not divide the {h}x{w} image.")
        # Xavier-uniform as of the [p p c, dim] matrix that it is.
        init = nn.initializers.variance_scaling(
            1.0, "fan_avg", "uniform", in_axis=(0, 1, 2), out_axis=3
        )
        shape = (p, p, c, self.dim)
        kernel = self.param("kernel", init, shape, jnp.float32).reshape(-1, self.dim)
        bias = self.param("bias", nn.initializers.zeros, (self.dim,), jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(space_to_depth(x, p), kernel, bias)
        return x @ kernel + bias


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al., 2017) over tokens `[b, n, d]`.

    Attributes:
      heads: number of heads; must divide `d`.
    """

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Attends; raises ValueError if `heads` does not divide `d`."""
        b, n, d = x.shape
        if d % self.heads:
            raise ValueError(f"heads={self.heads} does not divide dim={d}.")
        init = nn.initializers.xavier_uniform()
        qkv = nn.Dense(3 * d, kernel_init=init, name="qkv")(x)
        qkv = qkv.reshape(b, n, 3, self.heads, d // self.heads)
        y = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        return nn.Dense(d, kernel_init=init, name="proj")(y.reshape(b, n, d))


class Mlp(nn.Module):
    """The two-layer perceptron of a transformer block, `[b, n, d] -> [b, n, d]`.

    Attributes:
      ratio: hidden width over `d`.
      approximate_gelu: the tanh form (DiT) instead of the exact one (ViT).
    """

    ratio: float = 4.0
    approximate_gelu: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies it to every token."""
        d = x.shape[-1]
        init = nn.initializers.xavier_uniform()
        x = nn.Dense(int(self.ratio * d), kernel_init=init, name="fc1")(x)
        x = nn.gelu(x, approximate=self.approximate_gelu)
        return nn.Dense(d, kernel_init=init, name="fc2")(x)


def scan_blocks(block, depth: int, *, remat: bool = False):
    """Returns module class `block` repeated `depth` times by `nn.scan`.

    Parameters get a leading axis `depth`, and the program holds one block whatever the
    depth. `block.__call__(carry, *broadcast)` must return `(carry, None)`.

    Args:
      block: the module class.
      depth: number of repetitions.
      remat: recompute activations in the backward pass instead of storing them.
    """
    if remat:
        block = nn.remat(block, prevent_cse=False)
    return nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=depth,
    )
