"""What the TPU compiler says of our largest programs, on a machine without a TPU.

    python -m benchmarks.tpu [--json=benchmarks/tpu.json]

Needs the compiler (`pip install "ot-dd[plan]"`). For one v5e chip: the l1 cost of 64 x
1300 latents of 4,096 dimensions and its gradient, against the bytes that must move. For
256 chips (v5e:16x16): one problem of 1.28 M x 50,000 points of 512 dimensions, value and
gradient. The pipeline's own programs: `python -m ot_dd.plan`.
"""

import argparse
import json
import os
import re
from pathlib import Path

os.environ.update(TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from ot_dd import ot
from ot_dd.planning.hlo import COLLECTIVES
from ot_dd.platform import compiling_for


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
    arguments = parser.parse_args()
    found = transport()
    for name, row in found.items():
        print(name, row)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
