"""Costs read from what the TPU compiler wrote, against counts by hand."""

from pathlib import Path

import compiled
import pytest

from ot_dd.config import ConfigError
from ot_dd.planning.chips import CHIPS, chip_of
from ot_dd.planning.hlo import Program

TEXT = Path(compiled.__file__).with_name("compiled.txt").read_text()
CHIP = CHIPS["v5e"]
MEBI = 2**20

# Five turns that each read one matrix of a stack, add it and write the sum in place.
LOOP = """HloModule loop

%add_one (stack: f32[5,1024,1024], i: s32[], total: f32[1024,1024]) -> f32[1024,1024] {
  %stack = f32[5,1024,1024]{2,1,0} parameter(0)
  %i = s32[]{:S(6)} parameter(1)
  %zero = s32[] constant(0)
  %one = f32[1,1024,1024]{2,1,0} dynamic-slice(%stack, %i, %zero, %zero), dynamic_slice_sizes={1,1024,1024}
  %flat = f32[1024,1024]{1,0} bitcast(%one)
  %total = f32[1024,1024]{1,0} parameter(2)
  ROOT %sum = f32[1024,1024]{1,0} add(%flat, %total)
}

%body (carry: (s32[], f32[5,1024,1024], f32[1024,1024])) -> (s32[], f32[5,1024,1024], f32[1024,1024]) {
  %carry = (s32[], f32[5,1024,1024]{2,1,0}, f32[1024,1024]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%carry), index=0
  %stack.1 = f32[5,1024,1024]{2,1,0} get-tuple-element(%carry), index=1
  %total.1 = f32[1024,1024]{1,0} get-tuple-element(%carry), index=2
  %step = s32[] constant(1)
  %next = s32[] add(%i.1, %step)
  %sum.1 = f32[1024,1024]{1,0} fusion(%stack.1, %i.1, %total.1), kind=kLoop, calls=%add_one, backend_config={"window_config":{"estimated_cycles":"1500"}}
  ROOT %out = (s32[], f32[5,1024,1024]{2,1,0}, f32[1024,1024]{1,0}) tuple(%next, %stack.1, %sum.1)
}

%condition (carry.1: (s32[], f32[5,1024,1024], f32[1024,1024])) -> pred[] {
  %carry.1 = (s32[], f32[5,1024,1024]{2,1,0}, f32[1024,1024]{1,0}) parameter(0)
  %i.2 = s32[] get-tuple-element(%carry.1), index=0
  %limit = s32[] constant(5)
  ROOT %more = pred[] compare(%i.2, %limit), direction=LT
}

ENTRY %main (stack.2: f32[5,1024,1024], total.2: f32[1024,1024]) -> f32[1024,1024] {
  %stack.2 = f32[5,1024,1024]{2,1,0} parameter(0)
  %total.2 = f32[1024,1024]{1,0} parameter(1)
  %start = s32[] constant(0)
  %first = (s32[], f32[5,1024,1024]{2,1,0}, f32[1024,1024]{1,0}) tuple(%start, %stack.2, %total.2)
  %last = (s32[], f32[5,1024,1024]{2,1,0}, f32[1024,1024]{1,0}) while(%first), condition=%condition, body=%body
  ROOT %result = f32[1024,1024]{1,0} get-tuple-element(%last), index=2
}
"""  # noqa: E501


def test_a_loop_counts_its_turns_and_the_slices_that_it_reads():
    cost = Program(LOOP, CHIP, 1).cost()
    assert cost.unknown_loops == 0
    # A matrix read from the stack, the sum read and written: 12 MiB, and the index.
    # Adding to the counter costs some bytes more.
    assert cost.bytes == pytest.approx(5 * 12 * MEBI, rel=1e-4)
    assert cost.seconds == pytest.approx(5 * 1500 / CHIP.clock, rel=1e-2)


def test_a_loop_that_its_counter_does_not_end_counts_once():
    text = LOOP.replace("s32[] add(%i.1, %step)", "s32[] multiply(%i.1, %step)")
    cost = Program(text, CHIP, 1).cost()
    assert cost.unknown_loops == 1
    assert cost.bytes == pytest.approx(12 * MEBI, rel=1e-4)
    named = text.replace(
        "body=%body", 'body=%body, metadata={op_name="a/turns_3/while"}'
    )
    assert Program(named, CHIP, 1).cost().bytes == pytest.approx(36 * MEBI, rel=1e-4)


def test_what_stays_in_small_memories_is_no_traffic():
    text = LOOP.replace("f32[1024,1024]{1,0}", "f32[1024,1024]{1,0:T(8,128)S(1)}")
    cost = Program(text, CHIP, 1).cost()
    assert cost.bytes == pytest.approx(5 * 4 * MEBI, rel=1e-4)


def test_a_real_program_sends_a_gradient_in_every_turn_of_both_loops():
    cost = Program(TEXT, CHIP, 4).cost()
    count = compiled.TURNS * compiled.LAYERS
    assert cost.collectives == count
    assert cost.collective_bytes == 4 * count * compiled.WIDTH**2
    # An all-reduce sends three quarters of it round and back.
    assert cost.waiting == pytest.approx(1.5 * cost.collective_bytes / CHIP.links)
    # Forward, and back to weights and inputs.
    products = 3 * 2 * compiled.BATCH * compiled.WIDTH**2 * count
    assert cost.seconds > products / 4 / CHIP.flops


def test_a_scope_is_a_part_of_the_whole():
    whole = Program(TEXT, CHIP, 4).cost()
    part = Program(TEXT, CHIP, 4, within="transport").cost()
    assert 0 < part.seconds < whole.seconds
    assert part.collectives == 0
    assert not Program(TEXT, CHIP, 4, within="influence").cost().seconds


def test_a_branch_counts_the_share_that_its_scope_says():
    seconds = [
        Program(TEXT.replace("share_3_10", f"share_{k}_10"), CHIP, 4).cost().seconds
        for k in (0, 3, 10)
    ]
    assert seconds[0] < seconds[1] < seconds[2]
    assert (seconds[1] - seconds[0]) / (seconds[2] - seconds[0]) == pytest.approx(0.3)


def test_chips_have_the_clocks_that_their_peaks_say():
    # GHz: 1.05 (v4, Jouppi et al. 2023), 1.5 (v5e), 1.75 (v5p, v6e).
    found = [round(chip.clock / 1e9, 2) for chip in CHIPS.values()]
    assert found == [1.05, 1.5, 1.75, 1.75]


def test_an_unknown_chip_is_named():
    with pytest.raises(ConfigError, match="--topology is 'v9:2x2'.*v4, v5e, v5p, v6e"):
        chip_of("v9:2x2")
