"""What the TPU compiler says of our largest programs, on a machine without a TPU.

    python -m benchmarks.tpu [--json=benchmarks/tpu.json] [--only=sampling]

Needs the libtpu wheel of the installed jax (`pip install "jax[tpu]"`). For one v5e
chip: the l1 cost of 64 x 1300 latents of 4,096 dimensions and its gradient, against the
bytes that must move. For 256 chips (v5e:16x16): one problem of 1.28 M x 50,000 points of
512 dimensions, value and gradient. For 8 chips (v5e:2x4): the guided sampler of the
paper's ImageNet settings, DiT-XL/2 with its backward pass, the autoencoder's decoder and
ConvNet-6's gradients (influence), deviation and transport, a class on every chip.
"""

import argparse
import json
import os
import re
from functools import partial
from pathlib import Path

os.environ.update(TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from configs import imagenet1k
from ot_dd import diffusion, models, ot
from ot_dd.platform import compiling_for
from ot_dd.stages import sample
from ot_dd.stages.artifacts import Autoencoder, Denoiser, Surrogate

COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute",
               "reduce-scatter")  # fmt: skip


def compile_for_tpu(function, *arguments):
    """Compiles a function, or what `jit` made of it, for its arguments' devices."""
    function = function if hasattr(function, "lower") else jax.jit(function)
    with compiling_for("tpu"):
        return function.lower(*arguments).compile()


def facts(compiled) -> dict:
    """Returns what the compiler estimates of a program."""
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    sizes = memory.argument_size_in_bytes, memory.output_size_in_bytes
    seconds = cost["optimal_seconds"]
    return {
        "gigaflops": round(cost["flops"] / 1e9, 3),
        "megabytes_accessed": round(cost["bytes accessed"] / 1e6, 1),
        "megabytes_in_and_out": round(sum(sizes) / 1e6, 1),
        "argument_megabytes": round(memory.argument_size_in_bytes / 1e6, 1),
        "temporary_megabytes": round(memory.temp_size_in_bytes / 1e6, 1),
        # The compiler gives a negative time where it has no estimate.
        "estimated_microseconds": round(1e6 * seconds, 1) if seconds > 0 else None,
        "collectives": len(
            re.findall(
                rf" (?:{'|'.join(COLLECTIVES)})(?:-start)?\(", compiled.as_text()
            )
        ),
    }


def guided_sampler(topology: str = "v5e:2x4"):
    """Compiles the paper's sampler, one class a chip, ten latents of each in turn."""
    config = imagenet1k.get_config()
    pod = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    chips = len(pod.devices)
    mesh = topologies.make_mesh(pod, (chips,), ("data",))
    same = NamedSharding(mesh, P())
    split, split_second = (
        NamedSharding(mesh, P(*s)) for s in (["data"], [None, "data"])
    )

    def placed(tree, sharding=same):
        return jax.tree.map(
            lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=sharding), tree
        )

    def variables(module, size, channels):
        x = jnp.zeros((1, size, size, channels))
        row = jnp.zeros(1)
        extra = (row, row.astype(int)) if isinstance(module, models.DiT) else ()
        return jax.eval_shape(module.init, jax.random.key(0), x, *extra)

    dit = models.create(config.denoiser.model, num_classes=1000, remat=True)
    denoiser = Denoiser(
        variables(dit, 32, 4)["params"], dit, config.denoiser.parametrization, 1000,
        config.denoiser.guidance_scale, config.denoiser.cfg_channels,
    )  # fmt: skip
    kl = models.create("autoencoder_kl")
    four = jnp.zeros(4)
    autoencoder = Autoencoder(variables(kl, 256, 3), four, four, kl, (256, 256, 3), 0)
    convnet = models.create(config.surrogate.model, num_classes=1000)
    one = variables(convnet, 256, 3)["params"]
    checkpoints = config.surrogate.checkpoints
    params = jax.tree.map(
        lambda v: jax.ShapeDtypeStruct((checkpoints, *v.shape), v.dtype), one
    )
    size = sum(leaf.size for leaf in jax.tree.leaves(one))
    terms = tuple(
        diffusion.Term(name, None, tuple(config.guidance[name].window),
                       config.guidance[name].normalise, name == "influence")
        for name in ("influence", "deviation", "transport")
    )  # fmt: skip
    static = (
        config.sampler.name, sample.make_transport_options(config), config.ipc, 1,
        terms, mesh,
    )  # fmt: skip
    m = config.guidance.transport.num_real
    f32 = jnp.float32
    return compile_for_tpu(
        partial(sample._run, static),
        placed(jax.eval_shape(lambda: sample.make_process(config))),
        placed(jax.eval_shape(lambda: jax.random.key(0))),
        jax.ShapeDtypeStruct((chips,), jnp.int32, sharding=split),
        placed(denoiser),
        placed(autoencoder),
        placed(Surrogate(params, convnet)),
        (
            jax.ShapeDtypeStruct((chips, m, 4096), f32, sharding=split),
            jax.ShapeDtypeStruct((chips, m), f32, sharding=split),
        ),
        jax.ShapeDtypeStruct((checkpoints, chips, size), f32, sharding=split_second),
        tuple(jax.ShapeDtypeStruct((), f32, sharding=same) for _ in terms),
    )


def transport() -> dict:
    """Compiles costs for one chip and a sharded problem for 256."""
    chip = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    one = SingleDeviceSharding(chip.devices[0])

    def array(*shape, sharding=one):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

    def l1(x, y):
        return ot.cost_matrix(x, y, "l1")

    x, y, weight = array(64, 4096), array(1300, 4096), array(64, 1300)
    found = {
        "l1 cost": facts(compile_for_tpu(l1, x, y)),
        "l1 gradient": facts(
            compile_for_tpu(lambda x, y, w: jax.vjp(l1, x, y)[1](w), x, y, weight)
        ),
    }
    pod = topologies.get_topology_desc(platform="tpu", topology_name="v5e:16x16")
    mesh = topologies.make_mesh(pod, (256,), ("data",))
    rows, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())

    def value(x, y):
        return ot.solve_sample_sharded(
            x, y, mesh=mesh, epsilon=1.0, num_iters=100, block_size=128
        ).value

    found["1.28 M x 50,000 on 256 chips, a chip (loop bodies once)"] = facts(
        compile_for_tpu(
            jax.value_and_grad(value, argnums=(0, 1)),
            array(1_281_024, 512, sharding=rows),
            array(50_000, 512, sharding=everywhere),
        )
    )
    return found


def main() -> None:
    """Compiles the programs, prints and writes what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=("transport", "sampling"))
    arguments = parser.parse_args()
    found = {}
    if arguments.only != "sampling":
        found |= transport()
    if arguments.only != "transport":
        name = "DiT-XL/2 guided sampler on 8 chips, a chip (loop bodies once)"
        found[name] = facts(guided_sampler())
    for name, row in found.items():
        print(name, row)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
