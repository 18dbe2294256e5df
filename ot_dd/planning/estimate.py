"""Compiles a run's programs for a slice and adds up what they cost."""

import hashlib
import re
import sys
import time
from importlib import metadata
from pathlib import Path

import jax
import numpy as np
from jax.sharding import AxisType, Mesh
from rich.console import Console
from rich.table import Table

from ot_dd.checkpoint import read_json, write_json
from ot_dd.config import ConfigError
from ot_dd.flops import traced_flops
from ot_dd.planning.chips import chip_of
from ot_dd.planning.hlo import Program
from ot_dd.planning.programs import Sizes, Slice, label_bytes, programs
from ot_dd.platform import compiling_for
from ot_dd.stages.vocabulary import STAGES

# Memory of a TPU machine that one set's soft labels may take; they are gathered whole.
_HOST_BYTES = 128e9


def estimate(config, sizes: Sizes, topology: str, stages=(), cache: Path = Path()):
    """Compiles the programs and returns what a run costs.

    Args:
      config: the whole config, valid.
      sizes: of its data.
      topology: such as `v5e:16x16`.
      stages: only these; empty is all.
      cache: a directory for what was found of compiled programs.

    Returns:
      A dictionary for `print_plan` and for JSON: the slice, `programs`, `stages`, totals
      and `fits`.

    Raises:
      ConfigError: for a topology or stage that cannot be, or without the compiler.
    """
    for stage in stages:
        if stage not in STAGES:
            raise ConfigError(
                f"--stages names {stage!r}; the stages are {', '.join(STAGES)}"
            )
    chip, pod = chip_of(topology), slice_of(topology)
    rows = []
    for program in programs(config, sizes, pod):
        if stages and program.stage not in stages:
            continue
        print(f"  compiling {program.stage}: {program.name}", end=" ", file=sys.stderr,
              flush=True)  # fmt: skip
        began = time.monotonic()
        facts = _compiled(program, chip, topology, cache)
        print(f"({time.monotonic() - began:.0f} s)", file=sys.stderr, flush=True)
        facts |= {
            "stage": program.stage, "name": program.name, "chips": program.chips,
            "runs": program.runs, "product_runs": program.product,
            "note": program.note,
        }  # fmt: skip
        if facts["fits"]:
            facts["hours"] = facts["seconds"] * program.runs / 3600
            facts["product_hours"] = facts["seconds"] * program.product / 3600
        else:
            facts["advice"] = f"config.{program.advice}"
        rows.append(facts)
    labels = label_bytes(config, sizes)
    plan = {
        "config": config.name, "ipc": config.ipc, "topology": topology,
        "chips": pod.mesh.size, "hosts": pod.hosts, "sizes": sizes._asdict(),
        "programs": rows, "label_bytes": labels,
        "fits": all(row["fits"] for row in rows) and labels <= _HOST_BYTES,
    }  # fmt: skip
    for kind in ("hours", "product_hours"):
        plan[kind] = sum(row.get(kind, 0.0) for row in rows)
        plan[f"chip_{kind}"] = plan[kind] * pod.mesh.size
    return plan


def slice_of(topology: str) -> Slice:
    """Returns the chips of a topology, which need not be here.

    Raises:
      ConfigError: when there is no such slice, or no compiler.
    """
    every = _devices(topology)
    chips = len(every) // len({device.process_index for device in every})
    host = every
    if chips < len(every):  # The compiler takes whole slices: one of a host's shape.
        version = topology.partition(":")[0]
        flat = {1: "1x1", 2: "1x2", 4: "2x2", 8: "2x4"}[chips]
        host = _devices(
            f"{version}:{flat}" + ("x1" if topology.count("x") == 2 else "")
        )
    return Slice(topology, _mesh(every), _mesh(host), len(every) // chips)


def _devices(topology: str) -> np.ndarray:
    """Returns a slice's devices, neighbours beside each other."""
    from jax.experimental import topologies

    try:
        pod = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:
        text = str(error).splitlines()[0]
        if "libtpu" in text.lower() or not _has_compiler():
            raise ConfigError(
                'the TPU compiler is not installed: pip install "ot-dd[plan]"'
            ) from error
        raise ConfigError(f"--topology is {topology!r}: {text}") from error
    return topologies.make_mesh(pod, (len(pod.devices),), ("data",)).devices


def _mesh(devices: np.ndarray) -> Mesh:
    return Mesh(devices, ("data",), axis_types=(AxisType.Auto,))


def _has_compiler() -> bool:
    try:
        import libtpu  # noqa: F401
    except ImportError:
        return False
    return True


def _compiled(program, chip, topology: str, cache: Path) -> dict:
    """Returns the facts of one program on one chip, compiled now or earlier."""
    with compiling_for("tpu"):
        traced = program.trace()
        lowered = traced.lower()
    recipe = "\n".join((lowered.as_text(), topology, _compiler(), str(_VERSION)))
    file = cache / f"{hashlib.sha256(recipe.encode()).hexdigest()[:24]}.json"
    facts = read_json(file)
    if facts is None:
        facts = _compile(lowered, chip, program.chips)
        cache.mkdir(parents=True, exist_ok=True)
        write_json(file, facts)
    if not facts["fits"]:
        return facts
    flops = traced_flops(traced) / program.chips
    floor = flops / chip.flops
    used = 1e9 * (facts["arguments_gb"] + facts["temporaries_gb"])
    return facts | {
        "hbm_share": used / chip.hbm,
        "teraflops": flops / 1e12,
        "peak_seconds": floor,
        "memory_seconds": 1e9 * facts["gigabytes"] / chip.bandwidth,
        "seconds": max(facts["compiler_seconds"], floor) + facts["collective_seconds"],
    }


def _compile(lowered, chip, chips: int) -> dict:
    """Returns what the compiler says of a program, on one of its chips."""
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        sizes = _too_large(str(error))
        if sizes is None:
            raise
        return {"fits": False, "used": sizes[0], "of": sizes[1]}
    memory, text = compiled.memory_analysis(), compiled.as_text()
    fresh = memory.output_size_in_bytes - memory.alias_size_in_bytes
    cost = Program(text, chip, chips).cost()
    transport = Program(text, chip, chips, within="transport").cost()
    return {
        "fits": True,
        "arguments_gb": memory.argument_size_in_bytes / 1e9,
        "temporaries_gb": (memory.temp_size_in_bytes + fresh) / 1e9,
        "gigabytes": cost.bytes / 1e9,
        "compiler_seconds": cost.seconds,
        "collectives": cost.collectives,
        "collective_gb": cost.collective_bytes / 1e9,
        "collective_seconds": cost.waiting,
        "transport_share": transport.seconds / cost.seconds if cost.seconds else 0.0,
        "unknown_loops": cost.unknown_loops,
    }


def _too_large(error: str) -> tuple[str, str] | None:
    """Returns what a program needs and what a chip has, from the compiler's refusal."""
    for said in (
        r"Used ([\d.]+\w?) of ([\d.]+\w?) hbm",
        r"\(([\d.]+\w?)\) exceeds available HBM \(([\d.]+\w?)\)",
    ):
        found = re.search(said, error)
        if found:
            return found[1], found[2]
    return None


_VERSION = 1  # Of the facts in the cache.


def _compiler() -> str:
    try:
        return metadata.version("libtpu")
    except metadata.PackageNotFoundError:
        return ""


def print_plan(plan: dict) -> None:
    """Prints one slice's plan as a table, and what does not fit."""
    sizes = plan["sizes"]
    title = (
        f"{plan['config']}, {plan['ipc']} images per class, on {plan['topology']}: "
        f"{plan['chips']} chips, {plan['hosts']} hosts; {sizes['images']:,} training "
        f"images of {sizes['classes']:,} classes"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("program", overflow="fold")
    for name in ("chips", "HBM a chip", "TFLOP", "GB", "collectives", "a run",
                 "of peak", "runs", "hours"):  # fmt: skip
        table.add_column(name, justify="right")
    stage = None
    for row in plan["programs"]:
        if stage not in (None, row["stage"]):
            table.add_section()
        stage = row["stage"]
        name = f"{stage}: {row['name']}"
        if not row["fits"]:
            table.add_row(name, str(row["chips"]), f"{row['used']} of {row['of']}",
                          *[""] * 6, "does not fit", style="red")  # fmt: skip
            continue
        used = row["arguments_gb"] + row["temporaries_gb"]
        messages = f"{row['collectives']:,.0f}"
        if row["collectives"]:
            messages += f" ({row['collective_gb']:.3g} GB)"
        table.add_row(
            name, str(row["chips"]), f"{used:.1f} GB ({row['hbm_share']:.0%})",
            f"{row['teraflops']:.3g}", f"{row['gigabytes']:.3g}", messages,
            _time(row["seconds"]), f"{row['peak_seconds'] / row['seconds']:.0%}",
            f"{row['runs']:,.0f}", f"{row['hours']:.2f}",
        )  # fmt: skip
    console = _console()
    console.print(table)
    for kind, what in (("product_hours", "The distilled set"),
                       ("hours", "With all sets and students of the study")):  # fmt: skip
        console.print(
            f"{what}: {plan[kind]:.1f} hours, {plan[f'chip_{kind}']:,.0f} chip-hours."
        )
    shares = [
        f"{row['name']} {row['transport_share']:.2%}"
        for row in plan["programs"]
        if row["stage"] == "sample" and row.get("transport_share")
    ]
    if shares:
        console.print(
            f"Optimal transport's share of the estimate: {', '.join(shares)}."
        )
    loops = sum(row.get("unknown_loops", 0) for row in plan["programs"])
    if loops:
        console.print(f"Loops of unknown length, counted once: {loops}.")
    for row in plan["programs"]:
        if row["note"]:
            console.print(f"{row['stage']}: {row['name']}: {row['note']}.")
        if not row["fits"]:
            console.print(
                f"{row['stage']}: {row['name']} does not fit: it needs {row['used']} of "
                f"{row['of']}. Change {row['advice']}."
            )
    if plan["label_bytes"] > _HOST_BYTES:
        console.print(
            f"relabel: one set's soft labels are {plan['label_bytes'] / 1e9:,.0f} GB, "
            f"more than {_HOST_BYTES / 1e9:.0f} GB of a machine's memory. Change "
            "config.lia.mode='online' or config.lia.views."
        )


def _console() -> Console:
    """Returns a console wide enough for the tables where it is not a terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=150)


def _time(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60), ("s", 1), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def print_comparison(plans: dict[str, dict]) -> None:
    """Prints several slices' totals, and how well the work divides among their chips."""
    table = Table(title="slices compared", title_justify="left")
    table.add_column("slice")
    stages = list(
        dict.fromkeys(row["stage"] for p in plans.values() for row in p["programs"])
    )
    for name in ("chips", "fits", *(f"{stage}, h" for stage in stages), "hours",
                 "chip-hours", "efficiency"):  # fmt: skip
        table.add_column(name, justify="right")
    first = next(iter(plans.values()))
    for name, plan in plans.items():
        each = [
            sum(r.get("hours", 0) for r in plan["programs"] if r["stage"] == stage)
            for stage in stages
        ]
        share = first["chip_hours"] / plan["chip_hours"] if plan["chip_hours"] else 0
        table.add_row(
            name, str(plan["chips"]), "yes" if plan["fits"] else "no",
            *(f"{hours:.2f}" for hours in each), f"{plan['hours']:.2f}",
            f"{plan['chip_hours']:,.0f}",
            f"{share:.1%}" if first["fits"] and plan["fits"] else "",
        )  # fmt: skip
    _console().print(table)
