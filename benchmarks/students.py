"""Times a student's training steps against the same network in PyTorch.

    python -m benchmarks.students [--json=benchmarks/students.json]

Also a convolution alone and its gradients, which is where the time goes.
Ten AdamW steps on 32 x 32 images, batch 50, cross-entropy, float32, all cores: ours as
one compiled loop, PyTorch eagerly. "two seeds" trains two networks: ours by `vmap` and on
a thread each (what the pipeline does), PyTorch one after the other.
"""

import argparse
import json
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from benchmarks.timing import medians, row
from ot_dd import models
from ot_dd.models import layers
from tests import peers

STEPS, BATCH, SIZE, CLASSES = 10, 50, 32, 10


def ours(name, options, images, labels):
    """Returns `train(key)`, compiled, and the same for two keys by vmap."""
    module = models.create(name, num_classes=CLASSES, **options)
    tx = optax.adamw(1e-3)

    def train(key):
        variables = module.init(key, images[:2], train=True)
        params = variables["params"]
        stats = {k: v for k, v in variables.items() if k != "params"}

        def loss_fn(params, stats):
            logits, stats = module.apply(
                {"params": params, **stats}, images, train=True, mutable=list(stats)
            )
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return loss.mean(), stats

        def step(carry, _):
            params, stats, state = carry
            (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(
                params, stats
            )
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), stats, state), loss

        carry, losses = jax.lax.scan(
            step, (params, stats, tx.init(params)), length=STEPS
        )
        return losses

    return jax.jit(train), jax.jit(jax.vmap(train))


def theirs(name, images, labels):
    """Returns a function that trains PyTorch's network for the same steps."""
    make = {
        "convnet3": _convnet,
        "resnet18": partial(_resnet, peers.from_torchvision),
    }[name]
    x = torch.tensor(np.asarray(images).transpose(0, 3, 1, 2).copy())
    y = torch.tensor(np.asarray(labels), dtype=torch.long)

    def train():
        torch.manual_seed(0)
        network = make().train()
        optimiser = torch.optim.AdamW(network.parameters(), 1e-3)
        for _ in range(STEPS):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(network(x), y).backward()
            optimiser.step()

    return train


def _convnet(width=128):
    layers, channels = [], 3
    for _ in range(3):
        layers += [
            torch.nn.Conv2d(channels, width, 3, padding=1),
            torch.nn.GroupNorm(width, width),
            torch.nn.ReLU(),
            torch.nn.AvgPool2d(2),
        ]
        channels = width
    return torch.nn.Sequential(
        *layers, torch.nn.Flatten(), torch.nn.Linear(16 * width, CLASSES)
    )


def _resnet(make):
    network = make("resnet18", num_classes=CLASSES)
    network.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = torch.nn.Identity()
    return network


def convolutions(channels=64, size=32):
    """Yields `(case, runs)` of a 3 x 3 convolution and of its two gradients."""
    key = jax.random.key(2)
    x = jax.random.normal(key, (BATCH, size, size, channels))
    kernel = jax.random.normal(key, (3, 3, channels, channels))

    def parts(convolve):
        return {
            "forward": jax.jit(convolve),
            "gradient of images": jax.jit(
                lambda g, k: jax.vjp(convolve, x, k)[1](g)[0]
            ),
            "gradient of kernel": jax.jit(
                lambda g, k: jax.vjp(convolve, x, k)[1](g)[1]
            ),
        }

    ours, xla = parts(layers.conv_on_cpu), parts(layers.conv_by_xla)
    tx = torch.tensor(np.asarray(x).transpose(0, 3, 1, 2).copy())
    tk = torch.tensor(np.asarray(kernel).transpose(3, 2, 0, 1).copy())
    grad = torch.nn.grad
    theirs = {
        "forward": lambda: torch.nn.functional.conv2d(tx, tk, padding=1),
        "gradient of images": lambda: grad.conv2d_input(tx.shape, tk, tx, padding=1),
        "gradient of kernel": lambda: grad.conv2d_weight(tx, tk.shape, tx, padding=1),
    }

    def run(function):
        jax.block_until_ready(function(x, kernel))

    for part in ours:
        case = f"3x3 convolution, {channels} channels, {size}x{size}: {part}"
        runs = {"ot_dd": partial(run, ours[part]), "xla": partial(run, xla[part])}
        yield case, runs | {"torch": theirs[part]}


def main() -> None:
    """Times both networks, prints and writes the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(os.cpu_count())
    images = jax.random.normal(jax.random.key(0), (BATCH, SIZE, SIZE, 3))
    labels = jnp.arange(BATCH) % CLASSES
    rows = []
    for case, runs in convolutions():
        for run in runs.values():
            run()
        rows.append(row(case, medians(runs, 5 * arguments.rounds)))
        print(rows[-1], flush=True)
    for name, options in {"convnet3": {}, "resnet18": {"stem": "cifar"}}.items():
        one, two = ours(name, options, images, labels)
        keys = jax.random.split(jax.random.key(1), 2)
        torch_run = theirs(name, images, labels)
        pool = ThreadPoolExecutor(2)

        def alone(one=one, keys=keys):
            jax.block_until_ready(one(keys[0]))

        def threads(one=one, keys=keys, pool=pool):
            list(pool.map(lambda k: jax.block_until_ready(one(k)), keys))

        def vmapped(two=two, keys=keys):
            jax.block_until_ready(two(keys))

        def torch_twice(run=torch_run):
            run()
            run()

        cases = {name: {"ot_dd": alone, "torch": torch_run}}
        if name == "convnet3":  # A vmapped ResNet-18 takes minutes here.
            cases[f"{name}, two seeds"] = {
                "ot_dd": threads, "ot_dd vmap": vmapped, "torch": torch_twice,
            }  # fmt: skip
        for case, runs in cases.items():
            for run in runs.values():
                run()
            rows.append(row(case, medians(runs, arguments.rounds)))
            print(rows[-1], flush=True)
    if arguments.json:
        report = {
            "steps": STEPS, "batch": BATCH, "cores": os.cpu_count(),
            "versions": {p: version(p) for p in ("jax", "torch")}, "cases": rows,
        }  # fmt: skip
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
