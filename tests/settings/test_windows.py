"""Windows of steps."""

from __future__ import annotations

from typing import Any

import pytest

from t2ictl.errors import BadSetting
from t2ictl.settings.windows import Window


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
