"""One line from prompt to image on transformers: their own guidance, progress, and files that make an image again."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import diffusers
import pytest
from PIL import Image

from t2ictl.controls.presets import with_preset
from t2ictl.controls.registry import control_to_dict
from t2ictl.errors import BadSetting, Cancelled
from t2ictl.families import find_adapter
from t2ictl.families.scheduler_files import scheduler_config
from t2ictl.generation import Progress, generate, replay
from t2ictl.processors import AttendAndExcite, AttentionSegregation
from t2ictl.settings.files import read_settings
from tests import tiny_transformers as tiny

PROMPT = "a red circle and a blue square"
#: What a call of the stock pipeline takes by itself.
GUIDANCE = {
    "pixart_alpha": 4.5,
    "pixart_sigma": 4.5,
    "sana": 4.5,
    "hunyuan_dit": 5.0,
    "sd3": 7.0,
    "sd35": 7.0,
    "flux": 3.5,
    "flux_schnell": 3.5,
    "chroma": 5.0,
}
families = pytest.mark.parametrize("name", tiny.FAMILIES)
some = pytest.mark.parametrize("name", ["flux", "sd3", "pixart_alpha", "chroma"])


def asked(pipe: Any, **more: Any) -> dict[str, Any]:
    """A small image of this pipeline; what is no field of a request is an argument of its call."""
    return {"steps": 2, "seed": 3, **tiny.settings(pipe), **more}


def same(first: Image.Image, second: Image.Image) -> bool:
    return first.size == second.size and first.tobytes() == second.tobytes()


@families
def test_guidance_left_open_is_the_pipelines_own(name: str) -> None:
    pipe = tiny.FAMILIES[name]()
    made = generate(pipe, PROMPT, **asked(pipe))
    assert made.settings["request"]["guidance_scale"] == GUIDANCE[name]
    plain = pipe(prompt=PROMPT, num_inference_steps=2, generator=tiny.generator(3), **tiny.settings(pipe)).images[0]
    assert same(made.image, plain) and plain.size == tiny.size(pipe)[::-1]


@families
def test_guidance_that_was_asked_for_is_used(name: str) -> None:
    pipe = tiny.FAMILIES[name]()
    made = generate(pipe, PROMPT, guidance_scale=7.5, **asked(pipe))
    assert made.settings["request"]["guidance_scale"] == 7.5  # also where it is the default of a request
    is_without = name == "flux_schnell"
    assert same(made.image, generate(pipe, PROMPT, **asked(pipe)).image) == is_without


@some
def test_further_arguments_are_in_the_settings(name: str) -> None:
    pipe = tiny.FAMILIES[name]()
    settings = generate(pipe, PROMPT, **asked(pipe)).settings
    own = {key: value for key, value in tiny.settings(pipe).items() if key not in ("height", "width")}
    assert settings["arguments"] == own and settings["arguments"]["max_sequence_length"] == tiny.TEXT
    assert settings["pipeline"]["class"] == type(pipe).__name__ and settings["pipeline"]["dtype"] == "float32"


@families
def test_progress_counts_the_steps_and_false_stops(name: str) -> None:
    """PixArt has an older argument for it than the others."""
    pipe, seen = tiny.FAMILIES[name](), []

    def watch(progress: Progress) -> bool:
        seen.append((progress.step, progress.total, tuple(progress.latents.shape)))
        return progress.step < 2

    with pytest.raises(Cancelled, match="step 2 of 3"):
        generate(pipe, PROMPT, AttentionSegregation(), on_step=watch, **asked(pipe, steps=3))
    shape = tuple(tiny.run(pipe, PROMPT, steps=2).shape)
    assert seen == [(1, 3, shape), (2, 3, shape)]
    assert "encode_prompt" not in vars(pipe) and "step" not in vars(pipe.scheduler)


@some
def test_listening_to_steps_leaves_the_image_as_it_is(name: str) -> None:
    pipe, steps = tiny.FAMILIES[name](), []
    made = generate(pipe, PROMPT, on_step=lambda progress: steps.append(progress.step), **asked(pipe, steps=3))
    assert steps == [1, 2, 3]
    assert same(made.image, generate(pipe, PROMPT, **asked(pipe, steps=3)).image)


@families
def test_an_image_is_made_again_from_its_file(name: str, tmp_path: Path) -> None:
    pipe = tiny.FAMILIES[name]()
    first = generate(pipe, PROMPT, [AttendAndExcite()], **asked(pipe))
    path = first.save(tmp_path / "one.png")
    again = replay(pipe, path)
    assert same(first.image, again.image) and first.trace and len(again.trace) == len(first.trace)
    assert again.save(tmp_path / "two.png").read_bytes() == path.read_bytes()
    assert not same(first.image, generate(pipe, PROMPT, **asked(pipe)).image)


@pytest.mark.parametrize("name", ["flux", "pixart_alpha"])
def test_a_file_holds_the_defaults_that_were_taken_for_a_transformer(name: str, tmp_path: Path) -> None:
    pipe = tiny.FAMILIES[name]()
    path = generate(pipe, PROMPT, [AttendAndExcite(strength=0.5)], **asked(pipe)).save(tmp_path / "one.png")
    (written,) = read_settings(path)["controls"]
    (taken,) = with_preset([AttendAndExcite(strength=0.5)], find_adapter(pipe))
    assert written == json.loads(json.dumps(control_to_dict(taken)))
    assert written["step"]["mode"] == "normalized" and written["preset"] == "none"
    assert written["window"]["by"] == ("noise" if name == "flux" else "evaluations")


def test_a_scheduler_with_infinite_numbers_goes_through_a_file(tmp_path: Path) -> None:
    pipe = tiny.pixart_alpha()
    assert pipe.scheduler.config.lambda_min_clipped == -math.inf
    first = generate(pipe, PROMPT, [AttentionSegregation()], **asked(pipe))
    path = first.save(tmp_path / "one.png")

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is no JSON")

    text = Image.open(path).text  # type: ignore[attr-defined]
    settings = json.loads(next(iter(text.values())), parse_constant=refuse)
    assert settings["pipeline"]["scheduler_config"]["lambda_min_clipped"] == "-inf"
    # Another scheduler stands at the pipeline: that of the file is made again, and is the same.
    own = pipe.scheduler
    pipe.scheduler = other = diffusers.DDIMScheduler(**tiny.PIXART_SCHEDULE)
    again = replay(pipe, path)
    assert same(first.image, again.image) and pipe.scheduler is other
    assert again.settings["pipeline"]["scheduler_config"] == first.settings["pipeline"]["scheduler_config"]
    assert not same(first.image, generate(pipe, PROMPT, [AttentionSegregation()], **asked(pipe)).image)
    made = type(own).from_config({**scheduler_config(own), "lambda_min_clipped": -math.inf})
    assert made.config.lambda_min_clipped == -math.inf


@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_an_image_of_a_batch_is_the_one_of_its_own_seed(name: str) -> None:
    pipe = tiny.FAMILIES[name]()
    batch = generate(pipe, [PROMPT, "a cat"], images_per_prompt=2, **asked(pipe))
    for number, prompt in enumerate([PROMPT, PROMPT, "a cat", "a cat"]):
        alone = generate(pipe, prompt, **asked(pipe, seed=3 + number))
        pairs = zip(alone.image.tobytes(), batch.images[number].tobytes(), strict=True)
        assert max(abs(mine - theirs) for mine, theirs in pairs) <= 1
    assert not same(batch.images[0], batch.images[1])


@pytest.mark.parametrize(("name", "width"), [("flux", 20), ("sd3", 20), ("pixart_alpha", 20), ("sana", 24)])
def test_a_side_that_patches_do_not_divide_is_named_before_any_pass(name: str, width: int) -> None:
    pipe = tiny.FAMILIES[name]()
    with pytest.raises(BadSetting, match=f"Request.width {width} is no multiple of"):
        generate(pipe, PROMPT, **asked(pipe, width=width))


@pytest.mark.parametrize(
    ("name", "given", "match"),
    [
        ("flux", {"clean_caption": True}, "FluxPipeline cannot be asked with 'clean_caption'"),
        ("sd3", {"num_inference_steps": 3}, "There are: steps"),
        ("pixart_alpha", {"callback": print}, "There are: on_step"),
        ("chroma", {"steps": 100_000}, "more than the 1000 steps"),
    ],
)
def test_what_a_pipeline_does_not_take_is_named(name: str, given: dict[str, Any], match: str) -> None:
    pipe = tiny.FAMILIES[name]()
    with pytest.raises(BadSetting, match=match):
        generate(pipe, PROMPT, **asked(pipe, **given))
