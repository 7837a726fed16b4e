"""When, which rows, where; and what it cost."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from t2ictl.attention.batch import BatchLayout
from t2ictl.attention.layers import Layer, select_layers
from t2ictl.errors import BadSetting, NoLayerMatched, UnsupportedPipeline
from t2ictl.families import find_adapter
from t2ictl.session.cost import Cost, peak_bytes, start_peak
from t2ictl.settings.windows import Window
from tests.tiny import sd, sdxl, unet

# -- windows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [1, 2, 3, 7, 10, 49, 50, 51, 1000])
def test_windows_of_steps_hold_exactly_those_steps(total: int) -> None:
    for first in range(0, total + 1, max(1, total // 9)):
        for last in range(first, total + 1, max(1, total // 7)):
            assert Window.from_steps(first, last, total).steps(total) == tuple(range(first, last))


@pytest.mark.parametrize("border", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("total", [1, 3, 10, 51])
def test_neighboring_windows_share_no_step_and_leave_none_out(border: float, total: int) -> None:
    early, late = Window(stop=border).steps(total), Window(start=border).steps(total)
    assert early + late == tuple(range(total))


def test_window_edges() -> None:
    assert Window().steps(3) == (0, 1, 2)
    assert Window(start=0.4, stop=0.4).steps(10) == ()
    assert Window(stop=0.7).contains(6, 10) and not Window(stop=0.7).contains(7, 10)
    assert Window(start=1.0).steps(50) == ()


@pytest.mark.parametrize("settings", [{"start": -0.1}, {"stop": 1.1}, {"start": 0.6, "stop": 0.5}, {"start": "soon"}])
def test_bad_windows_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(BadSetting, match="Window.st"):
        Window(**settings)


# -- batch -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("prompts", [1, 3])
@pytest.mark.parametrize("images", [1, 2])
def test_lanes_lie_as_stock_pipelines_lay_them(guided: bool, prompts: int, images: int) -> None:
    batch = BatchLayout.from_counts(prompts=prompts, images_per_prompt=images, guided=guided)
    given_images = prompts * images
    assert len(batch) == given_images * (1 + guided) and batch.images == given_images
    assert batch.indices("cond") == tuple(range(len(batch)))[-given_images:]
    assert batch.indices("uncond") == (tuple(range(given_images)) if guided else ())
    own = batch.only("cond")
    assert [row.prompt for row in own.rows] == [p for p in range(prompts) for _ in range(images)]
    assert [row.image for row in own.rows] == list(range(given_images))
    assert own.indices("cond") == tuple(range(given_images)) and own.indices("uncond") == ()
    batch.check_rows(len(batch))
    for wrong in (len(batch) + given_images, 0):
        with pytest.raises(UnsupportedPipeline, match=f"got {wrong} rows where {len(batch)}"):
            batch.check_rows(wrong)


# -- layers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [sd, sdxl])
def test_layers_stand_in_the_order_in_which_the_denoiser_runs_them(build: Any) -> None:
    pipe = build()
    ran: list[str] = []
    for name, module in pipe.unet.named_modules():
        if name.endswith(("attn1", "attn2")):
            module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))  # type: ignore[misc]
    pipe("a cat", num_inference_steps=1, guidance_scale=1.0, output_type="latent")
    layers = find_adapter(pipe).layers
    assert [layer.module for layer in layers] == ran
    assert [layer.order for layer in layers] == list(range(len(ran)))
    assert len({layer.address for layer in layers}) == len(ran) == len(pipe.unet.attn_processors)


@pytest.mark.parametrize("size", [(16, 16), (13, 17), (14, 18), (1, 3), (7, 64)])
def test_map_sizes_are_those_of_the_denoiser(size: tuple[int, int]) -> None:
    model = unet()
    positions: dict[str, int] = {}
    for name, module in model.named_modules():
        if name.endswith(("attn1", "attn2")):

            def note(_: Any, args: Any, name: str = name) -> None:
                positions[name] = args[0].shape[1]

            module.register_forward_pre_hook(note)
    with torch.no_grad():
        model(torch.zeros(1, 4, *size), 1, torch.zeros(1, 16, 32))
    pipe = sd()
    pipe.unet = model
    for layer in find_adapter(pipe).layers:
        height, width = layer.size(size)
        assert height * width == positions[layer.module]


def made(address: str, factor: int, order: int) -> Layer:
    place, *_, kind = address.split(".")
    fields: dict[str, Any] = {"block": place, "kind": kind, "stride": factor, "order": order}
    return Layer(address=address, module="m", heads=2, **fields)


LAYERS = [
    made("up.1.0.0.cross", 2, 4),
    made("down.0.0.0.self", 1, 0),
    made("down.0.0.0.cross", 1, 1),
    made("mid.0.0.0.cross", 4, 2),
    made("up.0.0.1.cross", 4, 3),
]


@pytest.mark.parametrize(
    ("where", "orders"),
    [
        ("cross", [1, 2, 3, 4]),
        ("self", [0]),
        ("up", [3, 4]),
        ("up.*.cross", [3, 4]),
        ("*.0.cross", [1, 2, 4]),
        ("cross@4", [2, 3]),
        ("@1", [0, 1]),
        ("*", [0, 1, 2, 3, 4]),
        (("mid", "up.1.*"), [2, 4]),
        (("up", "up@4"), [3, 4]),
        (lambda layer: layer.stride > 1, [2, 3, 4]),
    ],
)
def test_filters(where: Any, orders: list[int]) -> None:
    assert [layer.order for layer in select_layers(LAYERS, where)] == orders


@pytest.mark.parametrize("where", ["crossed", "cross@16", "up.9.*", (), ("left",), lambda layer: False])
def test_a_filter_that_matches_nothing_says_what_there_is(where: Any) -> None:
    with pytest.raises(NoLayerMatched, match=r"No attention layer matches .*This model has: .*mid\.0\.0\.0\.cross@4"):
        select_layers(LAYERS, where)


# -- cost ------------------------------------------------------------------------------------------------------------


def test_cost_is_plain_data() -> None:
    assert Cost(forwards=3).to_dict() == {
        "forwards": 3,
        "extra_forwards": 0,
        "backwards": 0,
        "seconds": 0.0,
        "peak_bytes": 0,
    }
    start_peak(torch.device("cpu"))
    assert peak_bytes(torch.device("cpu")) > 2**20
