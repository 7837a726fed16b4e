"""Judges: the real classes of transformers at a toy size with random weights; the exact one on drawn images."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from t2ictl.errors import BadSetting
from t2ictl.evaluation.judges import Judge, open_judge
from t2ictl.evaluation.judges.shapes import ShapesJudge
from t2ictl.shapes import Look, Placed, Scene, render
from tests.evaluation.judge_cases import SIDE, VISION, drawings, heard, text_part
from tests.tiny import tokenizer

THINGS = ["red circle", "blue square", "cat"]


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("owl")
    torch.manual_seed(0)
    config = transformers.OwlViTConfig(text_config=text_part(), vision_config=VISION, projection_dim=16)
    model = transformers.OwlViTForObjectDetection(config)
    with torch.no_grad():  # random scales saturate the scores at 1
        for scale in (model.class_head.logit_shift, model.class_head.logit_scale):
            scale.weight.mul_(0.01), scale.bias.mul_(0.01)
    model.save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    transformers.OwlViTProcessor(transformers.OwlViTImageProcessorPil(size=size), tokenizer()).save_pretrained(folder)
    return folder


@pytest.fixture
def opened(request: pytest.FixtureRequest) -> Callable[[str], Judge]:
    def give(kind: str) -> Judge:
        fixture = {"clip": "clip", "detector": "detector", "vlm": "vlm", "choice": "vlm"}[kind]
        return open_judge(f"{kind}:{request.getfixturevalue(fixture)}")

    return give


@pytest.mark.parametrize("kind", ["clip", "detector", "vlm", "choice"])
def test_answers_are_probabilities_that_depend_on_image_and_thing_alone(
    opened: Callable[[str], Judge], kind: str
) -> None:
    judge, images = opened(kind), drawings()
    whole = np.asarray(judge(images, THINGS))
    assert whole.shape == (5, 3) and ((whole >= 0) & (whole <= 1)).all() and judge.name.startswith(kind)
    assert whole.std(axis=0).max() > 0  # random weights tell random images apart
    np.testing.assert_allclose(np.asarray(judge(images[3:], THINGS)), whole[3:], atol=1e-4)
    if kind == "choice":
        assert (whole.sum(axis=1) <= 1 + 1e-6).all()
    else:
        np.testing.assert_allclose(np.asarray(judge(images, THINGS[1:])), whole[:, 1:], atol=1e-4)


def test_clip_margin_is_its_formula(clip: Path) -> None:
    image = drawings(1)[0]
    model, processor = transformers.CLIPModel.from_pretrained(clip), transformers.CLIPProcessor.from_pretrained(clip)
    inputs = processor(text=["a picture", "a picture of a cat"], images=image, return_tensors="pt", padding=True)
    with torch.no_grad():
        made = model(**inputs)
    cosines = torch.nn.functional.cosine_similarity(made.image_embeds, made.text_embeds)
    wanted = torch.sigmoid(model.logit_scale.exp() * (cosines[1] - cosines[0]))
    assert open_judge(f"clip:{clip}")([image], ["cat"])[0, 0] == pytest.approx(wanted.item(), abs=1e-5)


def test_detector_gives_the_score_of_the_best_box(detector: Path) -> None:
    image = drawings(1)[0]
    model = transformers.OwlViTForObjectDetection.from_pretrained(detector)
    processor = transformers.OwlViTProcessor.from_pretrained(detector)
    inputs = processor(text=[["a photo of a cat"]], images=image, return_tensors="pt")
    with torch.no_grad():
        made = model(**inputs)
    best = processor.post_process_grounded_object_detection(made, threshold=0.0)[0]["scores"].max()
    assert open_judge(f"detector:{detector}")([image], ["cat"])[0, 0] == pytest.approx(float(best), abs=1e-5)


def test_yes_and_no_share_the_probability_of_the_first_token(vlm: Path) -> None:
    judge: Any = open_judge(f"vlm:{vlm}")
    p_V = judge._asking.first_token(drawings(1)[0], "Is there a cat in the image? Answer yes or no.")
    assert float(p_V.sum()) == pytest.approx(1, abs=1e-5)
    yes, no = float(p_V[judge._yes].sum()), float(p_V[judge._no].sum())
    assert judge(drawings(1), ["cat"])[0, 0] == pytest.approx(yes / (yes + no), abs=1e-6)


class Stubborn(torch.nn.Module):
    """A model that always answers with the letter A."""

    device = torch.device("cpu")

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        words = tokenizer(max_length=512)
        logits = torch.full((*input_ids.shape, len(words) + 1), -100.0)
        logits[..., words("A", add_special_tokens=False).input_ids] = 100.0
        return SimpleNamespace(logits=logits)


def test_choices_are_put_in_both_orders(vlm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = heard(monkeypatch)
    kind = transformers.AutoModelForImageTextToText
    monkeypatch.setattr(kind, "from_pretrained", lambda folder: Stubborn())
    # A model that always takes the first letter has said nothing: half for the first thing, half for "none of these".
    assert open_judge(f"choice:{vlm}")(drawings(1), ["cat", "dog"]).tolist() == [[0.5, 0.0]]
    assert [re.findall(r"^([A-Z])\. (.*)$", text, re.MULTILINE) for text in asked] == [
        [("A", "cat"), ("B", "dog"), ("C", "none of these")],
        [("A", "none of these"), ("B", "dog"), ("C", "cat")],
    ]


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("oracle", "no judge 'oracle'"),
        ("clip", "cannot be opened"),
        ("shapes:x", "cannot be opened"),
        ("clip:nowhere", "cannot be loaded"),
        ("vlm:nowhere", "cannot be loaded"),
    ],
)
def test_unknown_judges_are_refused(name: str, match: str) -> None:
    with pytest.raises(BadSetting, match=match):
        open_judge(name)


def test_a_judge_is_given_back_as_it_is() -> None:
    own = ShapesJudge()
    assert open_judge(own) is own and isinstance(own, Judge)


# -- the exact judge ----------------------------------------------------------------------------------------------


def scene(*looks: tuple[Any, ...]) -> Image.Image:
    placed = [
        Placed(look=Look(shape=shape, color=color, texture=texture), x=16 + 32 * number, y=32, radius=10)
        for number, (shape, color, texture) in enumerate(looks)
    ]
    return Image.fromarray(np.asarray(render(Scene(objects=tuple(placed)))))


@pytest.mark.parametrize(
    ("thing", "there"),
    [
        ("circle", 1),
        ("red circle", 1),
        ("a red circle", 1),
        ("blue circle", 0),
        ("red", 1),
        ("blue", 1),
        ("green", 0),
        ("striped blue star", 1),
        ("dotted star", 0),
        ("bolt", 1),
        ("red bolt", 0),
        ("round red circle", 1),
        ("cross", 0),
    ],
)
def test_exact_judge_reads_drawn_images(thing: str, there: int) -> None:
    image = scene(("circle", "red", "plain"), ("star", "blue", "striped"))
    assert ShapesJudge()([image, Image.new("RGB", (64, 64), (238, 238, 238))], [thing]).tolist() == [[there], [0]]


@pytest.mark.parametrize("thing", ["cat", "red dog", "", "red blue", "the", "round star"])
def test_exact_judge_refuses_what_it_does_not_know(thing: str) -> None:
    with pytest.raises(BadSetting):
        ShapesJudge()([], [thing])
