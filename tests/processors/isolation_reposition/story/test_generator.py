"""Stories on tiny real pipelines: counts, images that do not depend on how the story is cut, places, and errors."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import t2ictl
from t2ictl import Scene, Subject
from t2ictl.errors import BadSetting
from t2ictl.processors import AttentionSegregation
from t2ictl.processors.isolation_reposition.control import IsolationReposition
from tests.processors.isolation_reposition.story.story_cases import CAT, DOG, FAST, SCENES, differ, make, pixels

REHEARSED = {"places": "rehearsal", "rehearsal": 0.5}
LATENT = IsolationReposition(reposition="latent")


@pytest.fixture
def pipe() -> Any:
    return make()


# -- how the story is cut into calls --------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "scheduler", "guidance", "places"),
    [
        ("sd", "ddim", 4.0, "online"),
        ("sd", "euler_ancestral", 1.0, "rehearsal"),
        ("sd", "heun", 4.0, "online"),
        ("sdxl", "euler", 4.0, "rehearsal"),
        ("sdxl", "dpmpp_2m", 1.0, "online"),
    ],
)
def test_images_do_not_depend_on_the_number_of_images_in_a_call(
    family: str, scheduler: str, guidance: float, places: str
) -> None:
    settings = {**FAST, "guidance_scale": guidance, "places": places, "rehearsal": 0.6}
    pipe = make(family, scheduler)
    whole = t2ictl.story(pipe, [CAT, DOG], SCENES, batch=8, **settings)
    for batch in (2, 3, 4):
        assert differ(t2ictl.story(pipe, [CAT, DOG], SCENES, batch=batch, **settings), whole) <= 1
    plain = t2ictl.story(pipe, [CAT, DOG], SCENES, control=IsolationReposition(strength=0.0), **settings)
    assert differ(plain, whole) > 5  # otherwise all of this would be said of plain images


def test_what_is_kept_of_portraits_is_what_they_show(pipe: Any) -> None:
    """Published layers, every self-attention, one side of the guidance, and no dropout."""
    for fields in ({"ref_layers": ("self",)}, {"branch": "cond"}, {"ref_dropout": 0.0, "ref_strength": 2.0}):
        control = IsolationReposition(**fields)
        whole, cut = (t2ictl.story(pipe, [CAT, DOG], SCENES, control=control, batch=batch, **FAST) for batch in (8, 3))
        assert differ(whole, cut) <= 1


def test_a_full_bank_costs_portraits_and_a_warning_but_changes_no_image(pipe: Any) -> None:
    whole = t2ictl.story(pipe, [CAT, DOG], SCENES, **FAST)
    with pytest.warns(UserWarning, match="memory_mb=0.001") as said:
        poor = t2ictl.story(pipe, [CAT, DOG], SCENES, batch=3, memory_mb=0.001, **FAST)
    assert differ(whole, poor) <= 1
    assert dict(poor.generations) == {"portraits": 2 * 4, "scenes": 4}
    assert any(__file__ in str(each.filename) for each in said)  # it points at the caller


def test_without_words_of_portraits_the_bank_alone_carries_them(pipe: Any) -> None:
    control = IsolationReposition(cross=0.0, ref_layers=("self",), ref_dropout=0.0, ref_strength=3.0)
    whole, cut = (t2ictl.story(pipe, [CAT, DOG], SCENES, control=control, batch=batch, **FAST) for batch in (8, 3))
    apart = t2ictl.story(
        pipe, [CAT, DOG], SCENES, control=IsolationReposition(cross=0.0, reposition="off"), batch=3, **FAST
    )
    assert differ(whole, cut) <= 1 < differ(apart, cut)


# -- counts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("control", "settings", "expected", "rows"),
    [
        (IsolationReposition(), {}, {"portraits": 2, "scenes": 4}, 6),
        (IsolationReposition(), {"batch": 3}, {"portraits": 2, "scenes": 4}, 6),
        (IsolationReposition(), REHEARSED, {"rehearsals": 2, "portraits": 2, "scenes": 4}, 8),
        (LATENT, {"rehearsal": 0.5}, {"rehearsals": 2, "portraits": 2, "composites": 4, "scenes": 4}, 12),
    ],
)
def test_generations_are_those_of_the_formula_and_of_the_counter(
    pipe: Any, control: IsolationReposition, settings: dict[str, Any], expected: dict[str, float], rows: int
) -> None:
    """S + T; with rehearsals their share of T more; with composites S + 2T and rehearsals."""
    told = t2ictl.story(pipe, [CAT, DOG], SCENES, control=control, steps=4, guidance_scale=4.0, **settings)
    assert dict(told.generations) == expected
    assert told.cost.forwards == 2 * 4 * rows and told.cost.extra_forwards == 0


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_one_to_five_subjects_and_some_missing_from_scenes(pipe: Any, number: int) -> None:
    names = ("cat", "dog", "frog", "bear", "lion")[:number]
    subjects = [Subject(name=name, prompt=f"photo of a {name}") for name in names]
    prompt = "a " + " and a ".join(names)
    told = t2ictl.story(pipe, subjects, [Scene(prompt=prompt), Scene(prompt=f"a {names[-1]}")], batch=4, **FAST)
    assert list(told.portraits) == list(names) and len(told.scenes) == 2
    assert sum(told.generations.values()) == number + 2


# -- plain parts ----------------------------------------------------------------------------------


def test_portraits_and_strength_zero_are_the_plain_images(pipe: Any) -> None:
    told = t2ictl.story(pipe, [CAT, DOG], SCENES, control=IsolationReposition(strength=0.0), seed=5, **FAST)
    acted = t2ictl.story(pipe, [CAT, DOG], SCENES, seed=5, **FAST)
    prompts = [CAT.prompt, DOG.prompt, *(scene.prompt for scene in SCENES)]
    seeds = [5, 6, 7, 8, 77, 10]
    plain = pipe(
        prompts,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        num_inference_steps=3,
        guidance_scale=4.0,
    ).images
    assert np.array_equal(pixels(told.scenes), pixels(plain[2:]))
    for one in (told, acted):
        assert np.abs(pixels(list(one.portraits.values())) - pixels(plain[:2])).max() <= 1
    assert np.abs(pixels(acted.scenes) - pixels(plain[2:])).max() > 5


def test_the_pipeline_is_as_it_was(pipe: Any) -> None:
    pipe("a cat", num_inference_steps=1)  # stock pipelines keep some of what they were called with
    pipe("a cat", num_inference_steps=1)  # stock pipelines keep some of what they were called with
    before = (dict(pipe.__dict__), dict(pipe.unet.__dict__), pipe.unet.attn_processors, torch.get_rng_state())
    t2ictl.story(pipe, [CAT, DOG], SCENES, places="rehearsal", **FAST)  # ends calls early
    assert pipe.__dict__.keys() == before[0].keys() and pipe.unet.__dict__.keys() == before[1].keys()
    assert all(pipe.unet.attn_processors[name] is each for name, each in before[2].items())
    assert torch.equal(torch.get_rng_state(), before[3])


@pytest.mark.parametrize("size", [(64, 96), (72, 56)])
@pytest.mark.parametrize("control", [IsolationReposition(), LATENT], ids=["resample", "latent"])
def test_other_sizes(pipe: Any, size: tuple[int, int], control: IsolationReposition) -> None:
    told = t2ictl.story(pipe, [CAT, DOG], SCENES[:2], control=control, width=size[0], height=size[1], **FAST)
    assert {image.size for image in told.scenes} == {size}


def test_other_controls_act_beside(pipe: Any) -> None:
    alone = t2ictl.story(pipe, [CAT, DOG], SCENES[:1], **FAST)
    both = t2ictl.story(
        pipe, [CAT, DOG], SCENES[:1], controls=[AttentionSegregation(concepts=((), (), ("cat", "dog")))], **FAST
    )
    assert differ(alone, both) > 0 and both.cost.extra_forwards > 0


# -- places ---------------------------------------------------------------------------------------


def test_given_places_are_not_rehearsed_and_are_used(pipe: Any) -> None:
    boxes = {"cat": (0.0, 0.0, 0.45, 1.0), "dog": (0.55, 0.0, 1.0, 1.0)}
    swapped = {"cat": boxes["dog"], "dog": boxes["cat"]}
    one, other = (
        t2ictl.story(pipe, [CAT, DOG], [Scene(prompt="a cat and a dog", boxes=each)], places="rehearsal", **FAST)
        for each in (boxes, swapped)
    )
    assert "rehearsals" not in one.generations
    assert np.abs(pixels(one.scenes) - pixels(other.scenes)).max() > 2
    half = np.zeros((64, 64))
    half[:, :29] = 1  # the same cells as the box of the cat
    masks = {"cat": half, "dog": half[:, ::-1]}
    told = t2ictl.story(pipe, [CAT, DOG], [Scene(prompt="a cat and a dog", masks=masks)], **FAST)
    assert np.abs(pixels(one.scenes) - pixels(told.scenes)).max() <= 1


@pytest.mark.parametrize("reposition", ["resample", "latent"])
def test_a_detector_says_where_subjects_are(pipe: Any, reposition: str) -> None:
    asked: list[tuple[str, ...]] = []

    def detector(image: Image.Image, names: Sequence[str]) -> dict[str, Any]:
        assert image.size == (64, 64)
        asked.append(tuple(names))
        left = np.zeros((64, 64))
        left[:, :32] = 1
        return {"cat": (0.5, 0, 1, 1) if len(names) > 1 else left, "dog": None if len(names) > 1 else (0, 0, 1, 1)}

    control = IsolationReposition(reposition=reposition)
    told = t2ictl.story(pipe, [CAT, DOG], SCENES[:1], control=control, places="rehearsal", detector=detector, **FAST)
    portraits = [("cat",), ("dog",)] if reposition == "latent" else []
    assert asked == [*portraits, ("cat", "dog")]
    assert told.generations["rehearsals"] == 1  # to the end, since it has to be seen


@pytest.mark.parametrize(("scheduler", "evaluations"), [("ddim", 3), ("heun", 5)])
def test_a_rehearsal_ends_early_and_is_of_the_scene_alone(scheduler: str, evaluations: int) -> None:
    pipe = make(scheduler=scheduler)
    passes: list[int] = []
    pipe.unet.conv_in.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    boxes = {"cat": (0.0, 0.0, 0.45, 1.0)}
    t2ictl.story(
        pipe, [CAT, DOG], [Scene(prompt="a cat and a dog", boxes=boxes)], places="rehearsal", rehearsal=0.5, **FAST
    )
    rehearsed = -(-evaluations // 2)
    # Half of the evaluations, of the scene alone; then all of them, with its portraits. Every image is guided.
    assert passes == [2] * rehearsed + [2 * 3] * evaluations


# -- given images -------------------------------------------------------------------------------


def photo(color: str, size: tuple[int, int] = (64, 64)) -> Image.Image:
    image = Image.new("RGB", size, "gray")
    image.paste(Image.new("RGB", (size[0] // 2, size[1] // 2), color), (size[0] // 4, size[1] // 4))
    return image


@pytest.mark.parametrize("reposition", ["resample", "latent"])
def test_images_stand_in_for_portraits(pipe: Any, reposition: str) -> None:
    middle = (0.25, 0.25, 0.75, 0.75)
    pictured = [
        Subject(name="cat", prompt="photo of a cat", image=photo("red"), box=middle),
        Subject(name="dog", prompt="photo of a dog", image=photo("blue"), box=middle),
    ]
    control = IsolationReposition(reposition=reposition, ref_layers=("self",), ref_dropout=0.0)
    told = t2ictl.story(pipe, pictured, SCENES[:2], control=control, **FAST)
    cut = t2ictl.story(pipe, pictured, SCENES[:2], control=control, batch=2, **FAST)
    assert differ(told, cut) <= 1
    other = [pictured[0], Subject(name="dog", prompt="photo of a dog", image=photo("green"), box=middle)]
    assert differ(told, t2ictl.story(pipe, other, SCENES[:2], control=control, **FAST)) > 0
    if reposition == "latent":
        assert "portraits" not in told.generations
        assert np.array_equal(np.asarray(told.portraits["cat"]), np.asarray(photo("red")))


def test_an_image_without_a_place_cannot_be_cut_out(pipe: Any) -> None:
    with pytest.raises(BadSetting, match="nothing says where it is"):
        t2ictl.story(
            pipe,
            [Subject(name="cat", prompt="photo of a cat", image=photo("red"))],
            [Scene(prompt="a cat")],
            control=LATENT,
            **FAST,
        )


def test_a_story_is_deterministic_and_changes_nothing_it_was_given(pipe: Any) -> None:
    subjects, scenes = [CAT, DOG], list(SCENES)
    given = copy.deepcopy((subjects, scenes))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one, other = (t2ictl.story(pipe, subjects, scenes, **FAST) for _ in range(2))
    assert differ(one, other) == 0 and (subjects, scenes) == given
