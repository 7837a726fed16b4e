"""GenEval's clauses against answers worked by hand, and the whole metric on the real classes at a toy size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from t2ictl.benchmarks.scoring.geneval import COLORS, Box, Detected, GenEval, broken_clauses, relations
from t2ictl.benchmarks.scoring.metrics import open_metric
from t2ictl.errors import BadSetting

RED, BLUE = Detected(box=(0, 0, 10, 10)), Detected(box=(40, 0, 50, 10))


def by_box(each: Detected, name: str) -> str:
    """Objects on the left are red."""
    return "red" if each.box[0] < 20 else "blue"


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        # offset (-40, 0), shortened by 0.1 * (10 + 10) = 2 to (-38, 0): -0.95
        ((0, 0, 10, 10), (40, 0, 50, 10), {"left of"}),
        ((40, 0, 50, 10), (0, 0, 10, 10), {"right of"}),
        ((0, 0, 10, 10), (0, 30, 10, 40), {"above"}),
        ((0, 30, 10, 40), (0, 0, 10, 10), {"below"}),
        # a diagonal is both: (-38, -38) / (40 sqrt 2) = -0.67
        ((0, 0, 10, 10), (40, 40, 50, 50), {"left of", "above"}),
        # offset (-20, -12), shortened to (-18, -10), length 23.3: -0.77 and -0.43
        ((0, 0, 10, 10), (20, 12, 30, 22), {"left of"}),
        # large boxes: offset (-40, 0), shortened by 0.1 * (150 + 50) = 20 to -20: exactly one half, which is not more
        ((0, 0, 150, 10), (90, 0, 140, 10), set()),
        # the same place, and an offset no longer than the slack
        ((0, 0, 10, 10), (0, 0, 10, 10), set()),
        ((0, 0, 10, 10), (2, 0, 12, 10), set()),
    ],
)
def test_relations(a: Box, b: Box, expected: set[str]) -> None:
    assert relations(a, b) == expected


ONE, TWO = {"class": "clock", "count": 1}, {"class": "clock", "count": 2}
CLAUSES: list[tuple[str, dict[str, Any], list[str]]] = [
    ("there", {"found": {"clock": [RED]}, "include": [ONE]}, []),
    ("not there", {"found": {}, "include": [ONE]}, ["0 clock, 1 wanted"]),
    ("two", {"found": {"clock": [RED, BLUE]}, "include": [TWO], "exclude": [{"class": "clock", "count": 3}]}, []),
    (
        "too many",
        {"found": {"clock": [RED, BLUE, BLUE]}, "include": [TWO], "exclude": [{"class": "clock", "count": 3}]},
        ["3 clock, at most 2 wanted"],
    ),
    ("color", {"found": {"clock": [RED]}, "include": [{**ONE, "color": "red"}]}, []),
    ("other color", {"found": {"clock": [BLUE]}, "include": [{**ONE, "color": "red"}]}, ["clock is blue, red wanted"]),
    # Only the surest objects are looked at: a second, red one does not help.
    ("surest", {"found": {"clock": [BLUE, RED]}, "include": [{**ONE, "color": "red"}]}, ["clock is blue, red wanted"]),
    (
        "place",
        {
            "found": {"clock": [BLUE], "vase": [RED]},
            "include": [ONE, {"class": "vase", "count": 1, "position": ["left of", 0]}],
        },
        [],
    ),
    (
        "wrong place",
        {
            "found": {"clock": [RED], "vase": [BLUE]},
            "include": [ONE, {"class": "vase", "count": 1, "position": ["left of", 0]}],
        },
        ["vase is not left of the other"],
    ),
    (
        "nothing to relate to",
        {"found": {"vase": [RED]}, "include": [ONE, {"class": "vase", "count": 1, "position": ["left of", 0]}]},
        ["0 clock, 1 wanted", "vase has nothing to be left of"],
    ),
    # A clause whose color is wrong does not hold, so nothing can lie beside it.
    (
        "relative to a wrong one",
        {
            "found": {"clock": [BLUE], "vase": [RED]},
            "include": [{**ONE, "color": "red"}, {"class": "vase", "count": 1, "position": ["left of", 0]}],
        },
        ["clock is blue, red wanted", "vase has nothing to be left of"],
    ),
]


@pytest.mark.parametrize(("case", "expected"), [case[1:] for case in CLAUSES], ids=[case[0] for case in CLAUSES])
def test_clauses(case: dict[str, Any], expected: list[str]) -> None:
    assert broken_clauses(case["found"], case["include"], case.get("exclude", []), by_box) == expected


# -- the metric -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mask2former")
    torch.manual_seed(0)
    backbone = transformers.SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=4, image_size=64,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    sizes = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 16}
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone, **sizes, dim_feedforward=16, num_attention_heads=2, num_queries=5, encoder_layers=1,
        decoder_layers=2, id2label={0: "clock", 1: "vase", 2: "mouse"}, label2id={"clock": 0, "vase": 1, "mouse": 2},
    )  # fmt: skip
    transformers.Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    transformers.Mask2FormerImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rows = [
        {"tag": "single_object", "include": [ONE], "prompt": "a photo of a clock"},
        {"tag": "counting", "include": [TWO], "exclude": [{"class": "clock", "count": 3}], "prompt": "two clocks"},
        {"tag": "single_object", "include": [{"class": "computer mouse", "count": 1}], "prompt": "a mouse"},
        {"tag": "single_object", "include": [{"class": "zebra", "count": 1}], "prompt": "a zebra"},
    ]
    (folder / "evaluation_metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def metric(detector: Path, clip: Path, data: Path) -> GenEval:
    found = open_metric(f"geneval:{detector},{clip}", data=str(data))
    assert isinstance(found, GenEval)
    return found


def scene() -> tuple[Image.Image, list[np.ndarray]]:
    """An image, and masks of two things in it."""
    generator = np.random.default_rng(0)
    masks = [np.zeros((48, 64), dtype=bool) for _ in range(2)]
    masks[0][4:20, 2:18] = masks[1][24:44, 30:60] = True
    return Image.fromarray(generator.integers(0, 255, (48, 64, 3), dtype=np.uint8)), masks


def answer(monkeypatch: pytest.MonkeyPatch, found: list[tuple[int, float]]) -> None:
    """Let the detector's own post-processing say that it saw these labels, with these scores."""
    _, masks = scene()
    maps = torch.tensor(np.stack([masks[number % 2] for number in range(len(found))]), dtype=torch.float32)
    info = [{"label_id": label, "score": score} for label, score in found]
    said = [{"segmentation": maps, "segments_info": info}]
    kind = transformers.Mask2FormerImageProcessorPil
    monkeypatch.setattr(kind, "post_process_instance_segmentation", lambda *args, **kwargs: said)


def test_real_classes_give_a_score_and_a_name_of_its_own(metric: GenEval) -> None:
    image, _ = scene()
    assert metric(image, "a photo of a clock").value in (0.0, 1.0)
    assert metric.name.startswith("geneval[hf,mask2former")  # not the official one
    assert metric._find(image, {"clock"}, threshold=0.0).keys() == {"clock"}


def test_real_classes_find_masks_with_boxes_around_them(metric: GenEval) -> None:
    image, _ = scene()
    found = metric._find(image, {"clock", "vase", "computer mouse"}, threshold=0.0)
    every = [each for objects in found.values() for each in objects]
    assert every, "a random detector that finds nothing tests nothing"
    for each in every:
        assert each.mask_YX is not None and each.mask_YX.shape == (48, 64)
        left, top, right, bottom = map(int, each.box)
        assert each.mask_YX[top:bottom, left:right].sum() == each.mask_YX.sum()
        assert each.mask_YX[top].any() and each.mask_YX[bottom - 1].any()
        assert each.mask_YX[:, left].any() and each.mask_YX[:, right - 1].any()


def test_thresholds_order_and_words(metric: GenEval, monkeypatch: pytest.MonkeyPatch) -> None:
    image, _ = scene()
    answer(monkeypatch, [(0, 0.31), (1, 0.99)])
    assert metric(image, "a photo of a clock").value == 1
    answer(monkeypatch, [(0, 0.30)])
    assert metric(image, "a photo of a clock").parts == {"0 clock, 1 wanted": 0.0}
    answer(monkeypatch, [(0, 0.95), (0, 0.91)])  # counting: only what is very sure
    assert metric(image, "two clocks").value == 1
    answer(monkeypatch, [(0, 0.95), (0, 0.89)])
    assert metric(image, "two clocks").value == 0
    answer(monkeypatch, [(2, 0.5)])  # "computer mouse" is COCO's "mouse"
    assert metric(image, "a mouse").value == 1
    answer(monkeypatch, [(0, 0.4), (0, 0.8)])
    boxes = [each.box for each in metric._find(image, {"clock"}, threshold=0.3)["clock"]]
    assert boxes == [(30.0, 24.0, 60.0, 44.0), (2.0, 4.0, 18.0, 20.0)]  # the surest first
    answer(monkeypatch, [(0, 0.99 - 0.01 * number) for number in range(20)])
    assert len(metric._find(image, {"clock"}, threshold=0.3)["clock"]) == 16


def test_color_sees_the_object_alone_on_gray(metric: GenEval, monkeypatch: pytest.MonkeyPatch) -> None:
    image, masks = scene()
    seen = []
    original = transformers.CLIPProcessor.__call__

    def listen(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.extend([kwargs["images"]] if "images" in kwargs else [])
        return original(self, *args, **kwargs)

    monkeypatch.setattr(transformers.CLIPProcessor, "__call__", listen)
    mask = masks[0].copy()
    mask[4, 2] = False  # a corner of the box that is not the object's
    assert metric._color(image, Detected(box=(2, 4, 18, 20), mask_YX=mask), "clock") in COLORS
    assert seen[0].size == (16, 16)
    assert seen[0].getpixel((0, 0)) == (0x99, 0x99, 0x99)
    assert seen[0].getpixel((3, 3)) == image.getpixel((5, 7))


def test_color_texts_are_means_over_templates(metric: GenEval) -> None:
    texts = [f"a photo of a red {'clock'}", "a photo of a red-colored clock", "a photo of a red object"]
    inputs = metric._processor(text=texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        each = torch.nn.functional.normalize(metric._pooled(metric._clip.get_text_features(**inputs)), dim=-1)
    expected = each.mean(dim=0) / each.mean(dim=0).norm()
    assert torch.allclose(metric._texts("clock")[0], expected, atol=1e-6)


def test_what_is_missing_is_named(metric: GenEval, detector: Path, clip: Path, data: Path) -> None:
    image, _ = scene()
    with pytest.raises(BadSetting, match="not one of GenEval's"):
        metric(image, "a photo of a castle")
    with pytest.raises(BadSetting, match="knows no 'zebra'"):
        metric(image, "a zebra")
    with pytest.raises(BadSetting, match="clauses are in its metadata"):
        open_metric(f"geneval:{detector},{clip}")
    with pytest.raises(BadSetting, match="geneval needs two models. Write geneval:DETECTOR,CLIP"):
        open_metric(f"geneval:{detector}", data=str(data))


@pytest.mark.parametrize("box", [(2, 4, 22, 7), (2, 4, 22, 5), (2, 4, 5, 24), (2, 4, 3, 5)])
def test_color_of_an_object_that_is_thin(metric: GenEval, box: Box) -> None:
    """Three rows of pixels are not taken for three channels: the color is that of the same pixels, repeated."""
    left, top, right, bottom = map(int, box)
    mask = np.zeros((48, 64), dtype=bool)
    mask[top:bottom, left:right] = True
    image = Image.new("RGB", (64, 48), (200, 30, 30))
    wide = np.zeros((48, 64), dtype=bool)
    wide[4:24, 2:22] = True
    expected = metric._color(image, Detected(box=(2, 4, 22, 24), mask_YX=wide), "clock")
    assert metric._color(image, Detected(box=box, mask_YX=mask), "clock") == expected
