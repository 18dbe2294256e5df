"""TPU chips: what their makers say, for turning cycles and bytes into seconds.

Source: cloud.google.com/tpu/docs, the page of each version. The clock follows from the
peak and the matrix units: 2 x 128 x 128 (v6e: 256 x 256) operations a unit and cycle.
"""

from typing import NamedTuple

from ot_dd.config import ConfigError


class Chip(NamedTuple):
    """One chip.

    Attributes:
      flops: peak bfloat16 operations a second.
      hbm: bytes of memory.
      bandwidth: of that memory, bytes a second.
      links: bytes a second to other chips, all links together, one way.
      clock: cycles a second.
    """

    flops: float
    hbm: float
    bandwidth: float
    links: float
    clock: float


CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1228e9, 300e9, 275e12 / (8 * 2 * 128**2)),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 200e9, 197e12 / (4 * 2 * 128**2)),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 600e9, 459e12 / (8 * 2 * 128**2)),
    "v6e": Chip(918e12, 32 * 2**30, 1640e9, 448e9, 918e12 / (4 * 2 * 256**2)),
}


def chip_of(topology: str) -> Chip:
    """Returns the chip of a topology such as `v5e:16x16`.

    Raises:
      ConfigError: when it is of no known version.
    """
    version = topology.partition(":")[0]
    if version not in CHIPS:
        raise ConfigError(
            f"--topology is {topology!r}: it begins with one of {', '.join(CHIPS)}, "
            "such as v5e:4x4 or v4:2x2x1"
        )
    return CHIPS[version]
