"""Stories on tiny real pipelines: counts, pictures that do not depend on how the story is cut, places, and errors."""

from __future__ import annotations

import copy
import functools
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import t2ictl
from t2ictl import Scene, Subject
from t2ictl.cli import main
from t2ictl.errors import BadSetting, ShapeMismatch, SpanNotFound, T2ictlError
from t2ictl.processors import AttentionSegregation
from t2ictl.processors.isolation_reposition import IsolationReposition
from t2ictl.settings import read_settings
from t2ictl.stories import Story
from t2ictl.subjects import Places
from tests import tiny

CAT, DOG, FROG = (Subject(name=name, prompt=f"photo of a {name}") for name in ("cat", "dog", "frog"))
SCENES = (
    Scene(prompt="a cat and a dog on a bench"),
    Scene(prompt="a dog in a red hat"),
    Scene(prompt="a cat and a dog on a bench", seed=77),
    Scene(prompt="a dog and a cat", boxes={"cat": (0, 0, 0.45, 1)}),
)
FAST: dict[str, Any] = {"steps": 3, "guidance_scale": 4.0}
REHEARSED = {"places": "rehearsal", "rehearsal": 0.5}
OVERLAPPING = {"cat": (0, 0, 0.6, 1), "dog": (0.5, 0, 1, 1)}
LATENT = IsolationReposition(reposition="latent")


def pixels(images: Sequence[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image, dtype=int) for image in images])


def differ(one: Story, other: Story) -> int:
    """Largest difference of any pixel of any picture, of 255."""
    portraits = [pixels(list(each.portraits.values())) for each in (one, other)]
    scenes = [pixels(each.scenes) for each in (one, other)]
    return int(max(np.abs(portraits[0] - portraits[1]).max(), np.abs(scenes[0] - scenes[1]).max()))


def make(family: str = "sd", scheduler: str = "ddim") -> Any:
    pipe = tiny.sd() if family == "sd" else tiny.sdxl()
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = tiny.scheduler(scheduler)
    return pipe


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
def test_pictures_do_not_depend_on_the_number_of_pictures_in_a_call(
    family: str, scheduler: str, guidance: float, places: str
) -> None:
    settings = {**FAST, "guidance_scale": guidance, "places": places, "rehearsal": 0.6}
    pipe = make(family, scheduler)
    whole = t2ictl.story(pipe, [CAT, DOG], SCENES, batch=8, **settings)
    for batch in (2, 3, 4):
        assert differ(t2ictl.story(pipe, [CAT, DOG], SCENES, batch=batch, **settings), whole) <= 1
    plain = t2ictl.story(pipe, [CAT, DOG], SCENES, control=IsolationReposition(strength=0.0), **settings)
    assert differ(plain, whole) > 5  # otherwise all of this would be said of plain pictures


def test_what_is_kept_of_portraits_is_what_they_show(pipe: Any) -> None:
    """Published sites, every self-attention, one side of the guidance, and no dropout."""
    for fields in ({"ref_sites": ("self",)}, {"branch": "cond"}, {"ref_dropout": 0.0, "ref_strength": 2.0}):
        control = IsolationReposition(**fields)
        whole, cut = (t2ictl.story(pipe, [CAT, DOG], SCENES, control=control, batch=batch, **FAST) for batch in (8, 3))
        assert differ(whole, cut) <= 1


def test_a_full_bank_costs_portraits_and_a_warning_but_changes_no_picture(pipe: Any) -> None:
    whole = t2ictl.story(pipe, [CAT, DOG], SCENES, **FAST)
    with pytest.warns(UserWarning, match="memory_mb=0.001") as said:
        poor = t2ictl.story(pipe, [CAT, DOG], SCENES, batch=3, memory_mb=0.001, **FAST)
    assert differ(whole, poor) <= 1
    assert dict(poor.generations) == {"portraits": 2 * 4, "scenes": 4}
    assert any(__file__ in str(each.filename) for each in said)  # it points at the caller


def test_without_words_of_portraits_the_bank_alone_carries_them(pipe: Any) -> None:
    control = IsolationReposition(cross=0.0, ref_sites=("self",), ref_dropout=0.0, ref_strength=3.0)
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


def test_portraits_and_strength_zero_are_the_plain_pictures(pipe: Any) -> None:
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
def test_a_rehearsal_ends_early_and_finds_what_the_maps_show(
    scheduler: str, evaluations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = make(scheduler=scheduler)
    taken: list[int] = []
    real = Places.take

    def take(self: Places, maps_BYXT: torch.Tensor) -> None:
        taken.append(len(maps_BYXT))
        real(self, maps_BYXT)

    monkeypatch.setattr(Places, "take", take)
    boxes = {"cat": (0.0, 0.0, 0.45, 1.0)}
    t2ictl.story(
        pipe, [CAT, DOG], [Scene(prompt="a cat and a dog", boxes=boxes)], places="rehearsal", rehearsal=0.5, **FAST
    )
    rehearsed = -(-evaluations // 2)
    assert taken[:rehearsed] == [1] * rehearsed  # half of the evaluations, of the scene alone
    assert taken[rehearsed:] == [3] * evaluations  # portraits are looked for online


# -- given pictures -------------------------------------------------------------------------------


def photo(color: str, size: tuple[int, int] = (64, 64)) -> Image.Image:
    image = Image.new("RGB", size, "gray")
    image.paste(Image.new("RGB", (size[0] // 2, size[1] // 2), color), (size[0] // 4, size[1] // 4))
    return image


@pytest.mark.parametrize("reposition", ["resample", "latent"])
def test_pictures_stand_in_for_portraits(pipe: Any, reposition: str) -> None:
    middle = (0.25, 0.25, 0.75, 0.75)
    pictured = [
        Subject(name="cat", prompt="photo of a cat", image=photo("red"), box=middle),
        Subject(name="dog", prompt="photo of a dog", image=photo("blue"), box=middle),
    ]
    control = IsolationReposition(reposition=reposition, ref_sites=("self",), ref_dropout=0.0)
    told = t2ictl.story(pipe, pictured, SCENES[:2], control=control, **FAST)
    cut = t2ictl.story(pipe, pictured, SCENES[:2], control=control, batch=2, **FAST)
    assert differ(told, cut) <= 1
    other = [pictured[0], Subject(name="dog", prompt="photo of a dog", image=photo("green"), box=middle)]
    assert differ(told, t2ictl.story(pipe, other, SCENES[:2], control=control, **FAST)) > 0
    if reposition == "latent":
        assert "portraits" not in told.generations
        assert np.array_equal(np.asarray(told.portraits["cat"]), np.asarray(photo("red")))


def test_a_picture_without_a_place_cannot_be_cut_out(pipe: Any) -> None:
    with pytest.raises(BadSetting, match="nothing says where it is"):
        t2ictl.story(
            pipe,
            [Subject(name="cat", prompt="photo of a cat", image=photo("red"))],
            [Scene(prompt="a cat")],
            control=LATENT,
            **FAST,
        )


# -- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subjects", "scenes", "kind"),
    [
        ([CAT], [Scene(prompt="a cat", subjects=("lion",))], BadSetting),
        (
            [CAT, DOG],
            [Scene(prompt="a cat and a dog", boxes=OVERLAPPING)],
            BadSetting,
        ),
        ([CAT], [Scene(prompt="a cat", boxes={"cat": (0, 0, 1.5, 1)})], BadSetting),
        ([CAT], [Scene(prompt="a cat", masks={"cat": np.ones((32, 32))})], ShapeMismatch),
        ([], [Scene(prompt="a cat")], BadSetting),
        ([CAT], [Scene(prompt="a bench")], BadSetting),
        ([Subject(name="cat", prompt="photo of a dog")], [Scene(prompt="a cat")], SpanNotFound),
    ],
)
def test_what_cannot_be_told_is_named_before_anything_is_made(
    subjects: list[Subject], scenes: list[Scene], kind: type[T2ictlError], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = make()
    monkeypatch.setattr(pipe.unet, "forward", lambda *args, **kwargs: pytest.fail("the denoiser was called"))
    with pytest.raises(kind):
        t2ictl.story(pipe, subjects, scenes, **FAST)


def test_settings_are_checked(pipe: Any) -> None:
    with pytest.raises(BadSetting, match="batch"):
        t2ictl.story(pipe, [CAT], [Scene(prompt="a cat")], batch=1)
    with pytest.raises(BadSetting, match="stepz"):
        t2ictl.story(pipe, [CAT], [Scene(prompt="a cat")], stepz=1)
    with pytest.raises(BadSetting, match="of its own"):
        t2ictl.story(pipe, [CAT], [Scene(prompt="a cat")], control=IsolationReposition(subjects=(CAT,)))


def test_an_error_in_a_late_call_leaves_the_pipeline_as_it_was(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    processors, keys, count = pipe.unet.attn_processors, set(pipe.unet.__dict__), [0]
    real = type(pipe.scheduler).step

    @functools.wraps(real)
    @functools.wraps(real)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        if count[0] == 5:
            raise RuntimeError("power cut")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(type(pipe.scheduler), "step", step)
    with pytest.raises(RuntimeError, match="power cut"):
        t2ictl.story(pipe, [CAT, DOG], SCENES, batch=3, **FAST)
    assert set(pipe.unet.__dict__) == keys and all(
        pipe.unet.attn_processors[name] is each for name, each in processors.items()
    )


# -- what is written ------------------------------------------------------------------------------


def test_a_story_can_be_told_again_from_any_of_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told_once = tmp_path / "once"
    (tmp_path / "story.yaml").write_text(
        "subjects:\n- {name: circle, prompt: a red circle}\n- {name: star, prompt: a blue star}\n"
        "scenes:\n- prompt: a circle and a star\n- prompt: a large star\n"
        "control: {ref_dropout: 0.25}\nsteps: 2\nguidance_scale: 3\n"
    )
    assert main(["story", str(tmp_path / "story.yaml"), "--out", str(told_once)]) == 0
    printed = capsys.readouterr()
    names = ["sheet", "portrait-1", "portrait-2", "scene-1", "scene-2"]
    assert printed.out.split() == [*(str(told_once / f"{name}.png") for name in names), str(told_once / "story.json")]
    assert "4 generations (2 portraits, 2 scenes)" in printed.err
    settings = read_settings(told_once / "scene-2.png")
    assert settings["picture"] == "scene-2" and settings["story"]["control"]["ref_dropout"] == 0.25
    assert {"pipeline", "versions", "parser", "controls"} <= settings.keys()
    assert json.loads((told_once / "story.json").read_text())["generations"] == {"portraits": 2, "scenes": 2}
    for number, source in enumerate(("scene-1.png", "sheet.png", "story.json")):
        again = tmp_path / str(number)
        assert main(["story", str(told_once / source), "--out", str(again), "--json"]) == 0
        for name in names:
            first, second = (pixels([Image.open(folder / f"{name}.png")]) for folder in (told_once, again))
            assert np.array_equal(first, second)
    summary = json.loads(capsys.readouterr().out.rpartition("\n}\n{")[2].join(["{", ""]))
    assert summary["generations"] == {"portraits": 2, "scenes": 2} and len(summary["files"]) == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scenes: [{prompt: a star, subjects: [ring]}]", "which the story has not"),
        ("scenes: [{prompt: a star and a ring, boxes: {star: [0, 0, 2, 1]}}]", "The box is"),
        ("scenes: [{prompt: a ring}]", "no subject of the story"),
        ("control: {reposition: sideways}\nscenes: [{prompt: a star and a ring}]", "reposition"),
        ("scenes: [{prompt: a star and a ring}]\nfoo: 3", "foo"),
    ],
)
def test_bad_files_are_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    (tmp_path / "story.yaml").write_text("subjects: [{name: star, prompt: a red star}]\n" + text)
    assert main(["story", str(tmp_path / "story.yaml"), "--out", str(tmp_path / "told")]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said and "\n" not in said
    assert not (tmp_path / "told").exists()


def test_check_makes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "subjects: [{name: star, prompt: a red star}]\nscenes: [{prompt: a large star}]"
    (tmp_path / "story.yaml").write_text(text)
    assert main(["story", str(tmp_path / "story.yaml"), "--out", str(tmp_path / "told"), "--check"]) == 0
    assert capsys.readouterr().out == "scene 1: star\n" and not (tmp_path / "told").exists()


def test_a_story_is_deterministic_and_changes_nothing_it_was_given(pipe: Any) -> None:
    subjects, scenes = [CAT, DOG], list(SCENES)
    given = copy.deepcopy((subjects, scenes))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one, other = (t2ictl.story(pipe, subjects, scenes, **FAST) for _ in range(2))
    assert differ(one, other) == 0 and (subjects, scenes) == given
