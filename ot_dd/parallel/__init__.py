"""Devices and hosts: the mesh, what lies where on it, and jobs side by side.

Several processes run one program, each with devices of its own (a TPU pod, or
`launch/local.sh`). What is not on the mesh every process computes alike; what is
written, the first process writes, in a directory that all of them see.
"""

from ot_dd.parallel.hosts import (
    TOLD_TO_END,
    agree,
    barrier,
    check_alike,
    from_leader,
    gather_rows,
    is_leader,
    is_there,
    start_processes,
    to_host,
    told_to_end,
)
from ot_dd.parallel.jobs import side_by_side
from ot_dd.parallel.mesh import (
    STRATEGIES,
    data_mesh,
    keep,
    local_mesh,
    mesh_for,
    place,
    split,
    worth_dividing,
)

__all__ = [
    "STRATEGIES",
    "TOLD_TO_END",
    "agree",
    "barrier",
    "check_alike",
    "data_mesh",
    "from_leader",
    "gather_rows",
    "is_leader",
    "is_there",
    "keep",
    "local_mesh",
    "mesh_for",
    "place",
    "side_by_side",
    "split",
    "start_processes",
    "to_host",
    "told_to_end",
    "worth_dividing",
]
