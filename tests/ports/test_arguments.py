"""Arguments of a denoiser by name: there and back again, and some rows of them."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from t2ictl.ports.base import take_rows
from t2ictl.ports.flux import FluxPort
from tests import tiny_transformers as tiny
from tests.ports.port_cases import BUILDS, PLACES, known

#: How many arguments stock pipelines pass by position; all others by keyword.
POSITIONAL = {"sd": 2, "sdxl": 2, "sd_inpaint_9": 2, "pixart_alpha": 1, "pixart_sigma": 1, "sana": 1, "hunyuan_dit": 2}
everything = pytest.mark.parametrize("name", BUILDS)


@everything
def test_arguments_are_passed_on_as_they_came(name: str) -> None:
    port, call = known(name)
    inputs = port.bind(call.args, call.kwargs)
    names = list(inspect.signature(type(port.denoiser).forward).parameters)[1:]
    assert len(call.args) == POSITIONAL.get(name.removesuffix("_controlnet"), 0)
    assert list(inputs) == [*names[: len(call.args)], *call.kwargs] and set(inputs) <= set(names)
    args, kwargs = port.arguments(inputs, len(call.args))
    assert all(mine is theirs for mine, theirs in zip(args, call.args, strict=True))
    assert list(kwargs) == list(call.kwargs) and all(kwargs[key] is call.kwargs[key] for key in kwargs)


@everything
def test_names_do_not_depend_on_how_arguments_came(name: str) -> None:
    port, call = known(name)
    inputs = port.bind(call.args, call.kwargs)
    again = port.bind((), inputs)
    assert list(again) == list(inputs) and all(again[key] is inputs[key] for key in inputs)
    args, by_name = port.arguments(inputs, 0)
    assert args == () and list(by_name) == list(inputs) and all(by_name[key] is inputs[key] for key in inputs)


def test_a_class_that_hides_its_arguments_has_those_of_the_class_above() -> None:
    pipe = tiny.flux()

    class Own(type(pipe.transformer)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    pipe.transformer.__class__ = Own
    sample, text = torch.zeros(1), torch.ones(1)
    assert FluxPort(pipe.transformer).bind((sample,), {"encoder_hidden_states": text}) == {
        "hidden_states": sample,
        "encoder_hidden_states": text,
    }


@everything
def test_time_is_the_number_that_the_denoiser_is_told(name: str) -> None:
    port, call = known(name)
    inputs = port.bind(call.args, call.kwargs)
    told = torch.as_tensor(inputs["timestep"]).flatten()
    assert port.time(inputs) == float(told[0]) and (told == told[0]).all()


def repeated(value: Any, rows: int, total: int) -> Any:
    """Arguments of ``rows`` rows, whose own rows stand in turn."""
    if isinstance(value, Tensor):
        return value[[row % total for row in range(rows)]] if value.ndim and len(value) == total else value
    if isinstance(value, dict):
        return {key: repeated(each, rows, total) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(repeated(each, rows, total) for each in value)
    return value


# Where the number of rows is that of the places, or of the text's positions, tables without rows look as if they had.
@pytest.mark.parametrize(
    ("name", "rows"),
    [("flux", PLACES), ("flux", tiny.TEXT), ("chroma", tiny.TEXT), ("flux_kontext", 2 * PLACES)]
    + [(name, PLACES) for name in ("hunyuan_dit", "hunyuan_dit_controlnet", "flux_controlnet", "pixart_alpha", "sana")]
    + [("sd3_controlnet", 7), ("sana_controlnet", 7), ("sdxl", 5), ("sd35", 5)],
)
@torch.no_grad()
def test_some_rows_alone_are_those_of_the_whole_batch(name: str, rows: int) -> None:
    port, call = known(name)
    inputs = port.bind(call.args, call.kwargs)
    total = len(inputs[port.sample_name])
    inputs = {key: value if key in port.unbatched else repeated(value, rows, total) for key, value in inputs.items()}
    x_RCYX = port.latents(inputs)
    inputs = port.with_latents(inputs, x_RCYX + torch.arange(rows).view(-1, 1, 1, 1) / rows)
    before = dict(inputs)
    # Some models empty the lists that they are given; a new one is made for each pass.
    whole = port.denoiser(**{**port.take(inputs, slice(None)), "return_dict": False})[0]
    for chosen in (slice(1, 4), [rows - 1, 0], torch.tensor([2])):
        part = port.take(inputs, chosen)
        found = port.denoiser(**{**part, "return_dict": False})[0]
        torch.testing.assert_close(found, whole[chosen], rtol=0, atol=2e-5)
        for key in port.unbatched:
            assert part[key] is inputs[key]
    assert all(inputs[key] is before[key] for key in before)
    assert not torch.allclose(whole[0], whole[1], atol=1e-3)


def test_rows_are_taken_in_every_kind_of_container() -> None:
    x = torch.arange(6.0).view(3, 2)
    given = {"a": [x, (x, None)], "b": {"c": x, "d": 3, "e": torch.zeros(4), "f": torch.tensor(1.0)}, "g": "text"}
    found = take_rows(given, [2, 0], 3)
    assert torch.equal(found["a"][0], x[[2, 0]]) and torch.equal(found["a"][1][0], x[[2, 0]])
    assert type(found["a"][1]) is tuple and found["a"][1][1] is None
    assert torch.equal(found["b"]["c"], x[[2, 0]]) and found["b"]["e"].shape == (4,) and found["b"]["d"] == 3
    assert found["b"]["f"] is given["b"]["f"] and found["g"] == "text"  # type: ignore[index]
    assert found["a"] is not given["a"] and found["b"] is not given["b"]
