"""Windows of steps."""

from __future__ import annotations

from typing import Any

import pytest

from t2ictl.errors import BadSetting, UnsupportedPipeline
from t2ictl.settings.windows import Step, Window


@pytest.mark.parametrize("total", [1, 2, 3, 7, 10, 49, 50, 51, 1000])
def test_windows_of_steps_hold_exactly_those_steps(total: int) -> None:
    for first in range(0, total + 1, max(1, total // 9)):
        for last in range(first, total + 1, max(1, total // 7)):
            assert Window.from_steps(first, last, total).steps(total) == tuple(range(first, last))


@pytest.mark.parametrize("total", [1, 3, 10, 51])
def test_neighboring_windows_share_no_step_and_leave_none_out(total: int) -> None:
    for border in (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0):
        early, late = Window(stop=border).steps(total), Window(start=border).steps(total)
        assert early + late == tuple(range(total)), border


def test_window_edges() -> None:
    assert Window().steps(3) == (0, 1, 2)
    assert Window(start=0.4, stop=0.4).steps(10) == ()
    assert Window(stop=0.7).contains(6, 10) and not Window(stop=0.7).contains(7, 10)
    assert Window(start=1.0).steps(50) == ()


@pytest.mark.parametrize("settings", [{"start": -0.1}, {"stop": 1.1}, {"start": 0.6, "stop": 0.5}, {"start": "soon"}])
def test_bad_windows_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(BadSetting, match="Window.st"):
        Window(**settings)


# -- windows that count in noise --------------------------------------------------------------------------------------


def step(noise: float | None, index: int = 0, before: float | None = None) -> Step:
    return Step(index=index, total=28, timestep=1000.0 * (noise or 0.0), noise=noise, noise_before=before)


@pytest.mark.parametrize(
    ("start", "stop", "levels", "inside"),
    [
        (1.0, 0.6, (1.0, 0.93, 0.61, 0.6, 0.59, 0.0), (1.0, 0.93, 0.61)),
        (0.93, 0.82, (1.0, 0.94, 0.93, 0.9, 0.82, 0.5), (0.93, 0.9)),
        (0.6, 0.0, (0.61, 0.6, 0.3, 0.001, 0.0), (0.6, 0.3, 0.001)),
        (0.5, 0.5, (0.6, 0.5, 0.4), ()),
    ],
)
def test_by_noise_the_first_level_is_inside_and_the_last_outside(
    start: float, stop: float, levels: tuple[float, ...], inside: tuple[float, ...]
) -> None:
    window = Window(start=start, stop=stop, by="noise")
    assert tuple(level for level in levels if window.holds(step(level))) == inside


def test_by_noise_neighboring_windows_share_no_step_and_leave_none_out() -> None:
    levels = [1 - index / 40 for index in range(40)]
    for border in (0.93, 0.6, 0.525, 0.1):
        early, late = Window(start=1.0, stop=border, by="noise"), Window(start=border, stop=0.0, by="noise")
        assert [early.holds(step(each)) + late.holds(step(each)) for each in levels] == [1] * 40


def test_by_noise_it_does_not_matter_which_evaluation_it_is() -> None:
    window = Window(start=1.0, stop=0.6, by="noise")
    assert {window.holds(step(0.7, index)) for index in (0, 5, 27)} == {True}
    assert {window.holds(step(0.5, index)) for index in (0, 5, 27)} == {False}
    assert Window(stop=0.5).holds(step(0.1, 5)) and not Window(stop=0.5).holds(step(0.9, 20))


def test_by_noise_levels_fall() -> None:
    with pytest.raises(BadSetting, match=r"Window.start 0.6 is less noise than Window.stop 0.93.*higher level first"):
        Window(start=0.6, stop=0.93, by="noise")
    with pytest.raises(BadSetting, match="less noise"):
        Window(by="noise")  # the defaults are fractions
    with pytest.raises(BadSetting, match="lies after"):
        Window(start=0.93, stop=0.6)
    for settings in ({"start": 1.2}, {"stop": -0.1}, {"by": "sigma"}):
        with pytest.raises(BadSetting, match="Window"):
            Window(**({"start": 1.0, "stop": 0.0, "by": "noise"} | settings))


def test_a_scheduler_that_does_not_tell_its_noise_is_refused() -> None:
    with pytest.raises(UnsupportedPipeline, match="does not tell how much noise there is"):
        Window(start=1.0, stop=0.6, by="noise").holds(step(None))
    assert Window(stop=0.5).holds(step(None)) and Window(stop=0.5, by="steps").holds(step(None))


def test_fractions_of_the_steps_that_were_asked_for() -> None:
    last = Step(index=25, total=51, timestep=0.0, requested=50)
    assert Window(stop=0.5).total(last) == 51 and Window(stop=0.5, by="steps").total(last) == 50
    assert Window(stop=0.5, by="steps").total(step(0.5)) == 28  # nobody knows another number
    assert Window(start=1.0, stop=0.6, by="noise").total(last) == 51
