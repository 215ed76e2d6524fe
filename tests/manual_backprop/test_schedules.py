"""Schedules: their ticks, idle ticks and live microbatches, their check, their text and picture."""

import pytest

import manual_backprop as mb
from manual_backprop.schedules import NAMED, Operation, Schedule, zero_bubble

SIZES = [(1, 3), (2, 4), (3, 5), (4, 8), (4, 16), (8, 32), (8, 5), (5, 1)]
PUBLISHED = {(4, 8): (33, 33, 27), (4, 16): (57, 57, 51), (8, 32): (117, 117, 103)}

ZERO_BUBBLE = """
F0 F1 .  B0 W0 F2 B1 W1 B2 W2
.  F0 B0 F1 B1 W0 F2 B2 W1 W2
"""


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", list(NAMED))
def test_every_named_schedule_is_complete_and_in_order(name, sizes):
    schedule = NAMED[name](*sizes).check()
    assert (schedule.stages, schedule.microbatches) == sizes
    assert schedule.idle == (schedule.ticks - schedule.work,) * schedule.stages
    assert Schedule.from_text(str(schedule)) == schedule


@pytest.mark.parametrize("sizes", list(PUBLISHED))
def test_ticks(sizes):
    """GPipe and 1F1B wait 3 (p - 1) ticks, the zero-bubble schedule p - 1, whatever the number of microbatches."""
    stages, microbatches = sizes
    made = [make(*sizes) for make in NAMED.values()]
    assert tuple(schedule.ticks for schedule in made) == PUBLISHED[sizes]
    assert [schedule.ticks - schedule.work for schedule in made] == [3 * (stages - 1)] * 2 + [stages - 1]
    assert made[2].ticks == 3 * microbatches + stages - 1
    assert made[2].idle_share == pytest.approx((stages - 1) / made[2].ticks)


def test_live_microbatches():
    gpipe, one_by_one, split = (make(4, 16) for make in NAMED.values())
    assert gpipe.live == (16, 16, 16, 16)
    assert one_by_one.live == (4, 3, 2, 1)
    assert split.live == (4, 4, 4, 4)


def test_a_schedule_is_a_table_of_operations():
    schedule = Schedule.from_text(ZERO_BUBBLE)
    assert schedule.check() == zero_bubble(2, 3)
    assert schedule.rows[1][:3] == (None, Operation("F", 0), Operation("B", 0))
    assert schedule.tick("W", 1, 0) == 5
    assert (schedule.work, schedule.idle) == (9, (1, 1))
    assert repr(schedule) == f"Schedule of 2 stages, 3 microbatches, 10 ticks:\n{ZERO_BUBBLE.strip()}"


PLANTED = {
    "missing": ("B1 W0", ".  W0", "B1 \\(transport\\) is missing in the row of stage 1; every stage does F, B and W"),
    "twice": ("W1 W2", "W1 W1", "W1 \\(contraction\\) stands twice in the row of stage 1, at ticks 8 and 9"),
    "as it is sent": (
        "\n.  F0 B0",
        "\nF0 .  B0",
        "F0 \\(forward\\) of stage 1 stands at tick 0, too early.* tick 1 or",
    ),
    "before the stage above": (".  B0 W0", "B0 .  W0", "B0 \\(transport\\) of stage 0 stands at tick 2.*B0 of stage 1"),
    "before its forward": (
        "F1 .  B0 W0 F2 B1",
        "B1 .  B0 W0 F2 F1",
        "B1 .*of stage 0 stands at tick 1, too early: it needs F1",
    ),
    "before its transport": ("F1 .  B0 W0", "F1 .  W0 B0", "W0 \\(contraction\\) of stage 0.*needs B0 of stage 0"),
}


@pytest.mark.parametrize("name", list(PLANTED))
def test_the_check_finds_what_is_planted(name):
    old, new, message = PLANTED[name]
    assert ZERO_BUBBLE.count(old) == 1
    schedule = Schedule.from_text(ZERO_BUBBLE.replace(old, new))
    with pytest.raises(ValueError, match=message):
        schedule.check()


@pytest.mark.usefixtures("without_hook")
def test_bad_input_says_what_is_wrong():
    with pytest.raises(ValueError, match="an operation is one of F, B, W, got 'X'"):
        Operation("X", 0)
    with pytest.raises(ValueError, match="microbatch of an operation must be an int >= 0, got -1"):
        Operation("F", -1)
    with pytest.raises(TypeError, match="a cell of a schedule is an Operation or None, got str 'F0'"):
        Schedule((("F0",),))
    with pytest.raises(ValueError, match="as many ticks each, got \\[2, 1\\]; fill them up with None"):
        Schedule.from_text("F0 B0\nF0")
    with pytest.raises(ValueError, match="at least one stage and one operation, got none"):
        Schedule.from_text(".")
    with pytest.raises(ValueError, match="F, B or W and a number, or \\. for idle, got 'Fx'"):
        Schedule.from_text("F0 Fx")
    with pytest.raises(ValueError, match="stages of a schedule must be an int >= 1, got 0"):
        mb.schedules.gpipe(0, 3)
    with pytest.raises(ValueError, match="microbatches of a schedule must be an int >= 1, got 2.0"):
        mb.schedules.zero_bubble(2, 2.0)


@pytest.mark.usefixtures("without_hook")
def test_a_schedule_draws_itself():
    pytest.importorskip("matplotlib")
    schedule = zero_bubble(2, 3)
    light, dark = schedule.svg(), schedule.svg(theme="dark")
    assert light.startswith("<?xml") and light == schedule.svg() == schedule._repr_svg_() and light != dark
    assert light.count('id="patch_') == 1 + 2 * 10
    assert schedule.png(dpi=40).startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="theme must be one of light, dark, got 'blue'"):
        schedule.svg(theme="blue")
    with pytest.raises(ValueError, match="dpi must be above 0 and at most 2400, got 0"):
        schedule.png(dpi=0)
