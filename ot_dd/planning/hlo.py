"""Reads a program that the TPU compiler made: seconds, bytes and collectives.

The compiler notes an estimate of cycles beside every fusion, and its own summary counts
a loop's body once. Here loops count their turns, and conditionals their branches by the
scopes that `ot_dd.flops` reads.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from ot_dd.flops import share, turns
from ot_dd.planning.chips import Chip

COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute",
               "reduce-scatter", "collective-broadcast", "ragged-all-to-all")  # fmt: skip
_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "c64": 8, "token": 0, "opaque": 0}
_FREE = ("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all",
         "partition-id", "replica-id", "iota", "opt-barrier", "domain")  # fmt: skip


class Cost(NamedTuple):
    """What a program, or a part of one, costs a chip.

    Attributes:
      seconds: by the compiler's cycles; where it has none, bytes by the bandwidth.
      bytes: read and written in HBM.
      collectives: messages between chips.
      collective_bytes: in them.
      waiting: seconds that they take at full link speed.
      unknown_loops: loops whose turns are not known, and that counted one.
    """

    seconds: float = 0.0
    bytes: float = 0.0
    collectives: float = 0.0
    collective_bytes: float = 0.0
    waiting: float = 0.0
    unknown_loops: int = 0

    def __add__(self, other):
        return Cost(*(a + b for a, b in zip(self, other)))

    def times(self, factor: float) -> "Cost":
        """Returns the cost of `factor` runs; unknown loops stay as many."""
        return Cost(*(factor * value for value in self[:-1]), self.unknown_loops)


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str
    is_root: bool

    def scopes(self) -> str:
        """Returns the names of the functions and scopes that it comes from."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""

    def called(self, attribute: str) -> str:
        """Returns the computation that an attribute names, or an empty string."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.rest)
        return found[1] if found else ""


class Program:
    """A compiled program's computations.

    Args:
      text: `compiled.as_text()`.
      chip: what it runs on.
      chips: how many of them.
      within: count only what comes from a scope of this name.
    """

    def __init__(self, text: str, chip: Chip, chips: int, within: str = ""):
        self._chip, self._chips, self._within = chip, chips, within
        self._computations: dict[str, dict[str, Instruction]] = {}
        self._known: dict[str, Cost] = {}
        for name, is_entry, lines in _computations(text):
            parsed = filter(None, map(_parse, lines))
            self._computations[name] = {line.name: line for line in parsed}
            if is_entry:
                self._entry = name

    def cost(self) -> Cost:
        """Returns the whole program's cost, on one chip."""
        return self._of(self._entry)

    def _of(self, name: str) -> Cost:
        if name not in self._known:
            lines = self._computations[name]
            total = Cost()
            for line in lines.values():
                total += self._of_line(line, lines)
            self._known[name] = total
        return self._known[name]

    def _of_line(self, line: Instruction, lines) -> Cost:
        opcode = line.opcode
        if opcode in _FREE or opcode.endswith("-done"):
            return Cost()
        if opcode == "while":
            count = self._turns(line, lines) or turns(line.scopes())
            one = self._of(line.called("body")) + self._of(line.called("condition"))
            return one.times(count or 1) + Cost(unknown_loops=not count)
        if opcode == "conditional":
            branches = sorted(map(self._of, _branches(line)))
            taken = share(line.scopes())
            return branches[-1].times(taken) + branches[0].times(1 - taken)
        if opcode in ("call", "async-start"):
            callee = line.called("to_apply") or line.called("calls")
            return self._of(callee)
        if self._within and f"/{self._within}/" not in f"/{line.scopes()}/":
            return Cost()
        kind = opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            size = sum(_sizes(line.shape, hbm_only=False))
            size /= 2 if opcode != kind and line.shape.startswith("(") else 1
            rounds = 2 if kind == "all-reduce" else 1
            moved = rounds * size * (self._chips - 1) / self._chips
            return Cost(0, 2 * size, 1, size, moved / self._chip.links)
        moved = self._moved(line, lines)
        cycles = re.search(r'"estimated_cycles":"(\d+)"', line.rest)
        seconds = int(cycles[1]) / self._chip.clock if cycles else 0.0
        return Cost(seconds or moved / self._chip.bandwidth, moved)

    def _turns(self, line: Instruction, lines) -> int:
        """Returns a counted loop's turns, or 0 where it goes on by another rule."""
        condition = self._computations[line.called("condition")]
        root = next(each for each in condition.values() if each.is_root)
        if root.opcode != "compare" or "direction=LT" not in root.rest:
            return 0
        counter, limit = (condition.get(name) for name in root.operands)
        start = lines.get(line.operands[0])
        first, last = (_constant(each, start, lines) for each in (counter, limit))
        step = self._step(line, counter)
        return (
            0 if last is None or not step else max(-(-(last - (first or 0)) // step), 0)
        )

    def _step(self, line: Instruction, counter) -> int:
        """Returns what a loop's body adds to its counter, or 0 where it is no constant."""
        body = self._computations[line.called("body")]
        root = next(each for each in body.values() if each.is_root)
        if root.opcode != "tuple" or counter.opcode != "get-tuple-element":
            return 0
        added = body.get(root.operands[_index(counter)])
        while added is not None and added.opcode in ("copy", "bitcast"):
            added = body.get(added.operands[0])
        if added is None or added.opcode != "add":
            return 0
        steps = [_constant(body.get(name), None, body) for name in added.operands]
        return next((step for step in steps if step), 0)

    def _moved(self, line: Instruction, lines) -> float:
        """Returns the bytes that an instruction reads and writes in HBM."""
        if line.opcode in ("dynamic-slice", "slice", "gather", "copy-start"):
            return 2 * min(_sizes(line.shape), default=0)
        inside = self._computations.get(line.called("calls"), {})
        parameters = {
            int(each.operands[0]): each
            for each in inside.values()
            if each.opcode == "parameter"
        }
        total = 0.0
        for number, name in enumerate(line.operands):
            whole = sum(_sizes(lines[name].shape)) if name in lines else 0
            if whole and number in parameters:
                whole = min(whole, self._read(parameters[number].name, inside))
            total += whole
        written = sum(_sizes(line.shape))
        root = next((each for each in inside.values() if each.is_root), line)
        return total + min(written, _written(root, inside or lines) or written)

    def _read(self, name: str, lines) -> float:
        """Returns the bytes of a fusion's parameter that are read: slices of it."""
        total = 0.0
        for user in lines.values():
            if name not in user.operands:
                continue
            if user.opcode in ("dynamic-slice", "slice", "gather"):
                total += sum(_sizes(user.shape, hbm_only=False))
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
                continue
            elif user.opcode == "bitcast":
                total += self._read(user.name, lines)
            elif user.opcode == "fusion":
                inner = self._computations[user.called("calls")]
                number = str(user.operands.index(name))
                own = next(
                    each for each in inner.values()
                    if each.opcode == "parameter" and each.operands == (number,)
                )  # fmt: skip
                total += self._read(own.name, inner)
            else:
                return math.inf
        return total


def _written(root: Instruction, lines) -> float:
    """Returns the bytes that a fusion writes: of an update in place, the update's."""
    if root.opcode == "tuple":
        parts = [lines[name] for name in root.operands if name in lines]
        return sum(_written(part, lines) for part in parts)
    if root.opcode == "bitcast" and root.operands[0] in lines:
        return _written(lines[root.operands[0]], lines)
    if root.opcode == "dynamic-update-slice" and root.operands[1] in lines:
        return sum(_sizes(lines[root.operands[1]].shape, hbm_only=False))
    return sum(_sizes(root.shape))


def _constant(line, start, lines):
    """Returns the number that a loop's counter or limit begins with, or None."""
    while line is not None:
        if line.opcode == "constant":
            found = re.match(r"-?\d+$", line.operands[0])
            return int(found[0]) if found else None
        if line.opcode in ("copy", "bitcast"):
            line = lines.get(line.operands[0])
        elif line.opcode == "get-tuple-element" and start is not None:
            index = _index(line)
            if start.opcode != "tuple":
                return None
            line, start = lines.get(start.operands[index]), None
        else:
            return None
    return None


def _index(line: Instruction) -> int:
    return int(re.search(r"index=(\d+)", line.rest)[1])


def _branches(line: Instruction) -> list[str]:
    found = re.search(r"branch_computations=\{([^}]*)\}", line.rest)
    if found:
        return [name.strip().lstrip("%") for name in found[1].split(",")]
    return [line.called("true_computation"), line.called("false_computation")]


def _sizes(shape: str, *, hbm_only: bool = True) -> Iterator[float]:
    """Yields the bytes of a shape's arrays; those in a chip's small memories are none."""
    for dtype, sizes, layout in re.findall(r"(\w+)\[([\d,]*)\](\{[^}]*\})?", shape):
        if hbm_only and re.search(r"S\(\d+\)", layout):
            continue
        bits = re.search(r"\d+", dtype)
        width = _BYTES.get(dtype, int(bits[0]) / 8 if bits else 0)
        yield width * math.prod(int(size) for size in sizes.split(",") if size)


def _computations(text: str):
    """Yields `(name, is_entry, lines)` of each computation of a module."""
    name, is_entry, lines = "", False, []
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if head:
            name, is_entry, lines = head[2], bool(head[1]), []
        elif line.startswith("}") and name:
            yield name, is_entry, lines
            name = ""
        elif name:
            lines.append(line)


def _parse(line: str) -> Instruction | None:
    head = re.match(r"\s*(ROOT )?%?([\w.\-]+) = ", line)
    if not head:
        return None
    rest = line[head.end() :]
    end = _closing(rest) if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, _, rest = rest.partition("(")
    end = _closing("(" + rest) - 2
    inside, rest = rest[:end], rest[end + 1 :]
    operands = re.findall(r"%([\w.\-]+)", inside) or [inside]
    return Instruction(head[2], shape, opcode, tuple(operands), rest, bool(head[1]))


def _closing(text: str) -> int:
    """Returns the place behind the parenthesis that closes the first one."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return place + 1
    return len(text)
