"""Scenes: what they hold, and every way in which a story cannot be told, each with its named error."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter

from t2ictl import Region, Scene, Subject, parse
from t2ictl.errors import BadSetting, ShapeMismatch, SpanNotFound, T2ictlError
from t2ictl.processors.isolation_reposition.story.scenes import check_story
from t2ictl.prompts.prompt import Prompt
from tests import tiny

CAT = Subject(name="cat", prompt="photo of a cat")
DOG = Subject(name="dog", prompt="photo of a dog")
HAT, RED_HAT = Subject(name="hat", prompt="photo of a hat"), Subject(name="red hat", prompt="photo of a red hat")
SIZE = (64, 48)
HALF = np.zeros(SIZE, dtype=np.uint8)
HALF[:, :24] = 255


@pytest.fixture(scope="module")
def read() -> Callable[[str], Prompt]:
    return functools.partial(parse, tiny.sd())


def test_names_are_those_listed_or_those_of_the_prompt(read: Callable[[str], Prompt]) -> None:
    scenes = [
        Scene(prompt="a cat and a dog"),
        Scene(prompt="a cat and a dog", subjects=("dog",)),
        Scene(prompt="a dog on a bench"),
        Scene(prompt="a cat in a red hat"),
    ]
    there = check_story([CAT, DOG, HAT, RED_HAT], scenes, SIZE, read)
    assert there == (("cat", "dog"), ("dog",), ("dog",), ("cat", "red hat"))


def test_a_subject_is_found_behind_a_longer_name(read: Callable[[str], Prompt]) -> None:
    bears = [Subject(name=name, prompt=f"photo of a {name}") for name in ("bear", "teddy bear")]
    scenes = [Scene(prompt="a teddy bear and a bear"), Scene(prompt="a teddy bear"), Scene(prompt="a bear")]
    assert check_story(bears, scenes, SIZE, read) == (("bear", "teddy bear"), ("teddy bear",), ("bear",))
    with pytest.raises(BadSetting, match="'bear' and 'teddy bear' share words"):
        check_story(bears, [Scene(prompt="a teddy bear", subjects=("bear", "teddy bear"))], SIZE, read)


@pytest.mark.parametrize(
    ("subjects", "scenes", "kind", "message"),
    [
        ([], [Scene(prompt="a cat")], BadSetting, "has no subjects"),
        ([CAT], [], BadSetting, "has no scenes"),
        ([CAT, Subject(name="cat", prompt="a cat")], [Scene(prompt="a cat on a bench")], BadSetting, "same name"),
        ([CAT, Subject(name="photo", prompt="photo of a cat")], [Scene(prompt="a cat")], BadSetting, "same prompt"),
        ([Subject(name="frog", prompt="photo of a cat")], [Scene(prompt="a frog")], SpanNotFound, "frog"),
        ([CAT], [Scene(prompt="a cat"), Scene(prompt="a dog")], BadSetting, "Scene 2 ('a dog') names no subject"),
        ([CAT], [Scene(prompt="a cat", subjects=("lion",))], BadSetting, "names the subject 'lion'"),
        ([CAT], [Scene(prompt="a cat", boxes={"lion": (0, 0, 1, 1)})], BadSetting, "names the subject 'lion'"),
        ([CAT, DOG], [Scene(prompt="a cat", subjects=("dog",))], SpanNotFound, "dog"),
        ([CAT, DOG], [Scene(prompt="a cat", boxes={"dog": (0, 0, 1, 1)})], BadSetting, "it is not in it"),
        ([CAT], [Scene(prompt="photo of a cat")], BadSetting, "the prompt of the portrait of 'cat'"),
        (
            [CAT],
            [Scene(prompt="a cat", boxes={"cat": (0.5, 0, 1.2, 1)})],
            BadSetting,
            "Scene 1 ('a cat'), 'cat': The box",
        ),
        ([CAT], [Scene(prompt="a cat", boxes={"cat": (-0.1, 0, 1, 1)})], BadSetting, "'cat': The box"),
        ([CAT], [Scene(prompt="a cat", boxes={"cat": (0.5, 0, 0.4, 1)})], BadSetting, "'cat': The box"),
        ([CAT], [Scene(prompt="a cat", masks={"cat": HALF[:32]})], ShapeMismatch, "is 48 x 32, the image 48 x 64"),
        ([CAT], [Scene(prompt="a cat", masks={"cat": HALF.T})], ShapeMismatch, "is 64 x 48, the image 48 x 64"),
    ],
)
def test_what_cannot_be_told_is_named(
    read: Callable[[str], Prompt], subjects: list[Subject], scenes: list[Scene], kind: type[T2ictlError], message: str
) -> None:
    with pytest.raises(kind) as error:
        check_story(subjects, scenes, SIZE, read)
    assert message in str(error.value)
    assert error.value.remedy


@pytest.mark.parametrize(
    "places",
    [
        {"boxes": {"cat": (0, 0, 0.51, 1), "dog": (0.5, 0, 1, 1)}},
        {"boxes": {"cat": (0.2, 0.2, 0.4, 0.4), "dog": (0, 0, 1, 1)}},
        {"masks": {"cat": HALF, "dog": HALF}},
        {"masks": {"cat": HALF}, "boxes": {"dog": (0.3, 0.9, 1, 1)}},
    ],
)
def test_overlapping_regions_are_refused(read: Callable[[str], Prompt], places: dict[str, Any]) -> None:
    with pytest.raises(BadSetting, match=r"Scene 1 .* overlap"):
        check_story([CAT, DOG], [Scene(prompt="a cat and a dog", **places)], SIZE, read)


@pytest.mark.parametrize(
    "places",
    [
        {"boxes": {"cat": (0, 0, 0.5, 1), "dog": (0.5, 0, 1, 1)}},  # edges that touch are apart
        {"boxes": {"cat": (0, 0, 0.6, 0.5), "dog": (0.4, 0.5, 1, 1)}},
        {"masks": {"cat": HALF, "dog": 255 - HALF}},
        {"masks": {"cat": HALF}, "boxes": {"dog": (0.5, 0, 1, 1)}},
    ],
)
def test_regions_that_lie_apart_are_taken(read: Callable[[str], Prompt], places: dict[str, Any]) -> None:
    assert check_story([CAT, DOG], [Scene(prompt="a cat and a dog", **places)], SIZE, read) == (("cat", "dog"),)


def test_a_scene_alone() -> None:
    with pytest.raises(BadSetting, match="no prompt"):
        Scene(prompt="  ")
    with pytest.raises(BadSetting, match="has a box and a mask"):
        Scene(prompt="a cat", boxes={"cat": (0, 0, 1, 1)}, masks={"cat": HALF})
    scene = Scene(prompt="a cat and a dog", boxes={"cat": (0, 0, 0.5, 1)}, masks={"dog": HALF})
    cat, dog = scene.region("cat"), scene.region("dog")
    assert cat == Region(word="cat", box=(0, 0, 0.5, 1)) and scene.region("frog") is None
    assert dog is not None and torch.equal(dog.cells(2, 2), torch.tensor([[True, False], [True, False]]))


@pytest.mark.parametrize("form", ["array", "list", "image", "file"])
def test_masks_of_every_form_keep_their_size(form: str, tmp_path: Path) -> None:
    Image.fromarray(HALF).save(tmp_path / "half.png")
    forms: dict[str, Any] = {
        "array": HALF / 255,
        "list": (HALF // 255).tolist(),
        "image": Image.fromarray(HALF),
        "file": str(tmp_path / "half.png"),
    }
    scene = Scene(prompt="a cat", masks={"cat": forms[form]})
    assert scene.masks["cat"][0] == SIZE
    adapter = TypeAdapter(Scene)
    assert adapter.validate_python(adapter.dump_python(scene, mode="json")) == scene


def test_masks_that_cannot_be_read() -> None:
    for mask, message in (("nowhere.png", "no mask file"), ([1, 0], "shape"), (np.zeros(SIZE), "empty")):
        with pytest.raises(BadSetting, match=message):
            Scene(prompt="a cat", masks={"cat": cast(Any, mask)})


def test_a_mask_of_two_rows_is_not_taken_for_its_own_json_form() -> None:
    assert Scene(prompt="a cat", masks=cast(Any, {"cat": [[0, 1], [1, 0]]})).masks["cat"] == ((2, 2), ((0, 1), (1, 0)))
