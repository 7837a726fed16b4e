"""Arguments for ``generate``, ``replay`` and ``load``: right ones, and values of every other kind in their places."""

from __future__ import annotations

import datetime
import decimal
import enum
import fractions
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image

from t2ictl.controls.layouts import Region
from t2ictl.maps.recorder import Recording
from t2ictl.processors.attend_and_excite import AttendAndExcite
from t2ictl.processors.attention_segregation import AttentionSegregation
from t2ictl.processors.box_diff import BoxDiff
from t2ictl.processors.structured_guidance import StructuredGuidance
from tests import tiny
from tests.fuzz.command_lines import BAD_MODELS, BAD_PROMPTS, PROMPTS
from tests.fuzz.places import good_settings

__all__ = ["ArgumentSet", "argument_sets"]

Values = st.SearchStrategy[Any]
Maker = Callable[[], Any]


class Rude:
    """An object that cannot be shown, compared or counted."""

    def __repr__(self) -> str:
        raise RuntimeError("no name")

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    def __bool__(self) -> bool:
        raise RuntimeError("no truth")

    def __len__(self) -> int:
        raise RuntimeError("no length")

    __hash__ = object.__hash__


class Text(str):
    """A text of a class of its own."""


class Number(enum.IntEnum):
    """Whole numbers of a class of their own."""

    TWO = 2


def _endless() -> list[Any]:
    held: list[Any] = []
    held.append(held)
    return held


def _deep() -> list[Any]:
    held: list[Any] = []
    for _ in range(700):
        held = [held]
    return held


def _half() -> Any:
    return AttentionSegregation.__new__(AttentionSegregation)


#: Values of every kind. They are made anew for each set, since some are used up by reading.
ODD: tuple[Maker, ...] = (
    lambda: None, lambda: True, lambda: 0, lambda: -1, lambda: 2.5, lambda: float("nan"), lambda: float("inf"),
    lambda: 10**30, lambda: 10**5000, lambda: 1e300, lambda: "3", lambda: "", lambda: " ", lambda: "x" * 100_000,
    lambda: b"bytes", lambda: "\ud800", lambda: "\0", lambda: [], lambda: [1, 2], lambda: [None], lambda: [["a"],
    ["b"]],
    lambda: (), lambda: {}, lambda: {"a": 1}, set, lambda: {"a", "b"}, lambda: (each for each in "ab"), object, Rude,
    Text,
    lambda: Rude, lambda: int, lambda: len, lambda: (lambda *_: None), lambda: np.int64(2), lambda: np.float32(1.5),
    lambda: np.str_("a circle"), lambda: np.array(["a", "b"]), lambda: np.zeros((3, 3)), lambda: np.array(2),
    lambda: np.array([]), lambda: torch.tensor(2), lambda: torch.tensor([1.0, 2.0]), lambda: torch.zeros(1, 3, 64, 64),
    lambda: torch.tensor(float("nan")), lambda: torch.Generator(), lambda: Path("a.png"), lambda: Image.new("RGB", (64,
    64)),
    lambda: io.BytesIO(b"{}"), lambda: io.StringIO("{}"), lambda: decimal.Decimal("2"), lambda: fractions.Fraction(1,
    2),
    lambda: 2 + 1j, lambda: datetime.date(2024, 1, 1), lambda: Number.TWO, _endless, _deep, lambda: range(3),
    lambda: ...,
    lambda: NotImplemented, lambda: bytearray(b"a"), lambda: memoryview(b"a"), lambda: Text("a circle"), lambda: torch,
    lambda: torch.float16, lambda: torch.device("cpu"), lambda: [Rude()], lambda: {"a": Rude()}, lambda: [np.nan] * 3,
    lambda: Exception("x"), lambda: torch.nn.Linear(2, 2), lambda: -(10**30), lambda: "nan", lambda: "1e3",
    lambda: 1e-320,
)  # fmt: skip


def _kept(values: tuple[Any, ...]) -> tuple[Maker, ...]:
    """Values that nobody can change."""
    return tuple((lambda value=each: value) for each in values)


@st.composite
def _mostly(draw: st.DrawFn, good: tuple[Maker, ...], bad: tuple[Maker, ...] = (), share: int = 4) -> Any:
    """A good value, or one time in ``share`` one that is known to be bad or of any kind."""
    if draw(st.integers(1, share)) < share:
        return draw(st.sampled_from(good))()
    return draw(st.sampled_from(bad if bad and draw(st.booleans()) else ODD))()


CONTROLS: tuple[Maker, ...] = (
    tuple, lambda: None, list, AttentionSegregation, lambda: [AttentionSegregation()], lambda: (AttendAndExcite(),),
    lambda: [StructuredGuidance()], lambda: (each for each in [AttentionSegregation()]),
    lambda: {AttentionSegregation()},
    lambda: [BoxDiff(layout=(Region(word="circle", box=(0, 0, 0.5, 1)),))],
)  # fmt: skip
BAD_CONTROLS: tuple[Maker, ...] = (
    lambda: "attention_segregation", lambda: AttentionSegregation, lambda: [AttentionSegregation], lambda: [None],
    lambda: [[AttentionSegregation()]], lambda: {"control": "attention_segregation"},
    lambda: {"a": AttentionSegregation()},
    lambda: [AttentionSegregation(), None], lambda: iter([3]), lambda: np.array([AttentionSegregation()]),
    lambda: [_half()],
    lambda: [AttentionSegregation(layers=("nowhere",))], lambda: [AttentionSegregation(layers=("(",))], _half,
    lambda: [AttendAndExcite(concepts=("dog",))], lambda: [AttentionSegregation()] * 2, lambda: [lambda: None],
)  # fmt: skip
JSON_VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1,
    2.5,
    10**9,
    10**19,
    1e300,
    -0.5,
    "",
    "x",
    "trailing",
    "v_prediction",
    [],
    [0.1],
    {},
    "0",
)
TEXTS = _kept(PROMPTS) + _kept((("a circle", "a square"), Text("a red circle"), np.str_("a blue square")))
BAD_TEXTS = _kept(BAD_PROMPTS) + _kept((("a", ""), ("a", None), ("a", 3), ("a", b"b"), ("a", ("b",)), ("a", "\ud800")))
IMAGES: tuple[Maker, ...] = (
    lambda: Image.new("RGB", (64, 64)), lambda: torch.zeros(1, 3, 64, 64), lambda: np.zeros((1, 64, 64, 3), np.float32),
    lambda: [Image.new("RGB", (64, 64))],
)  # fmt: skip
BAD_IMAGES: tuple[Maker, ...] = (
    lambda: "a.png", lambda: Image.new("RGB", (1, 1)), lambda: Image.new("RGBA", (64, 64)), lambda: torch.zeros(3),
    lambda: torch.zeros(1, 7, 64, 64), lambda: torch.zeros(1, 3, 64, 64, dtype=torch.int64), lambda: np.zeros((64, 64)),
    lambda: torch.full((1, 3, 64, 64), float("nan")), lambda: [Image.new("RGB", (64, 64)), None], lambda: np.array("x"),
    lambda: [Image.new("RGB", (64, 64)), Image.new("RGB", (32, 32))], lambda: torch.zeros(0, 3, 64, 64),
    lambda: Image.new("P", (64, 64)), lambda: [Image.new("RGB", (64, 64))] * 3, lambda: torch.zeros(1, 3, 63, 61),
)  # fmt: skip

REQUEST: dict[str, Values] = {
    "seed": _mostly(_kept((0, 7, 2**63, 2**64 - 1, np.int64(3), 4.0, "5")), _kept((2**64, -1, 2.5, "x"))),
    "steps": _mostly(_kept((1, 2, np.int64(2), 2.0, "2", Number.TWO)), _kept((0, -3, 1001, 10**9, 2.5, "many"))),
    "width": _mostly(_kept((64, 32, None, np.int64(64), 64.0)), _kept((0, 63, 10**9, -64, 64.5, "64px"))),
    "height": _mostly(_kept((64, 32, None)), _kept((0, 65, 8200, -64, True))),
    "guidance_scale": _mostly(_kept((0, 1, 3.5, "2", np.float32(2))), _kept((-1, float("nan"), 1e300, "x"))),
    "negative_prompt": _mostly(_kept(("", "a dog", *PROMPTS)), _kept(("\ud800", None, ("a", "b"), 3))),
    "images_per_prompt": _mostly(_kept((1, 2)), _kept((0, -1, 10**9, 1001, 1.5))),
    "parser": _mostly(_kept(("grammar",)), _kept(("spacy", "nltk", "", None))),
}
OPTIONS: dict[str, Values] = {
    "record": _mostly((lambda: True, lambda: False, Recording, lambda: Recording(words=("circle",))), (
        lambda: "circle", lambda: Recording, lambda: Recording(words=("dog",)), lambda: Recording(budget_mb=0.0),
        lambda: Recording(layers=("nowhere",)), lambda: ["circle"], lambda: Recording(layers=("mid.*.self",)),
    )),
    "on_step": st.sampled_from([None, lambda progress: True, 3, "print", [len], b""]),
    "is_cancelled": st.sampled_from([None, lambda: False, lambda: True, True, "no"]),
    "checkpointing": _mostly(_kept(("off", "feed_forward", "all", "block")), _kept(("", "some", None, ["all"]))),
}  # fmt: skip
CALL: dict[str, Values] = {
    "nope": _mostly(_kept((1, None))),
    "generator": _mostly((torch.Generator,)),
    "num_inference_steps": _mostly(_kept((2,))),
    "output_type": _mostly(_kept(("pil", "latent"))),
    "eta": _mostly(_kept((0.0, 0.5)), _kept(("x", -1))),
    "clip_skip": _mostly(_kept((None, 1)), _kept((99, -1, "x"))),
    "guidance_rescale": _mostly(_kept((0.0, 0.5))),
    "latents": _mostly(
        (lambda: torch.zeros(1, 4, 16, 16),), (lambda: torch.zeros(2), lambda: torch.zeros(1, 3, 16, 16))
    ),
    "prompt_embeds": _mostly((lambda: None,), (lambda: torch.zeros(1, 16, 32), lambda: torch.zeros(1))),
    "negative_prompt_embeds": _mostly((lambda: None,), (lambda: torch.zeros(1, 16, 32),)),
    "cross_attention_kwargs": _mostly(_kept((None,)), _kept(({"scale": "x"}, {"nope": 1}))),
    "timesteps": _mostly(_kept((None,)), _kept(([1, 2], [2, 1], "x"))),
    "sigmas": _mostly(_kept((None,)), _kept(([1.0], "x"))),
    "ip_adapter_image": _mostly(_kept((None,)), IMAGES),
    "callback_on_step_end_tensor_inputs": _mostly(_kept((["latents"],)), _kept((["nope"], [], "latents"))),
    "callback_on_step_end": _mostly((lambda: None,)),
}
WITH_IMAGE: dict[str, Values] = {
    "image": _mostly(IMAGES, BAD_IMAGES, 2),
    "strength": _mostly(_kept((0.5, 1.0)), _kept((0, -1, 2, float("nan"), "x")), 3),
}
LOADED: dict[str, Values] = {
    "dtype": _mostly(_kept(("float32", torch.float32)), _kept(("int8", torch.int8, "", "torch.float32", float))),
    "device": _mostly(_kept((None, "cpu", torch.device("cpu"))), _kept(("cuda:7", "meta", "", "cpu:x", "warp", 0, -1))),
    "run_model_code": _mostly(_kept((False, True))),
}


@dataclass(frozen=True, kw_only=True)
class ArgumentSet:
    """One call.

    Args:
        verb: ``"generate"``, ``"replay"`` or ``"load"``.
        pipe: name of a pipeline of the tests; empty for ``wrong``.
        wrong: what stands in the place of a pipeline.
        values: arguments by position.
        named: arguments by name.
    """

    verb: str
    pipe: str = ""
    wrong: Any = None
    values: tuple[Any, ...] = ()
    named: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        named = ", ".join(f"{name}={_shown(value)}" for name, value in self.named.items())
        values = ", ".join(_shown(value) for value in self.values)
        return f"{self.verb}({self.pipe or _shown(self.wrong)}, {values}, {named})"


def _shown(value: Any) -> str:
    try:
        return f"{value!r:.100}"
    except Exception:
        return f"<{type(value).__name__}>"


@st.composite
def _some(draw: st.DrawFn, known: dict[str, Values], most: int = 3) -> dict[str, Any]:
    names = draw(st.lists(st.sampled_from(sorted(known)), max_size=most, unique=True))
    return {name: draw(known[name]) for name in names}


@st.composite
def _pipes(draw: st.DrawFn) -> tuple[str, Any]:
    if draw(st.integers(0, 11)) == 0:
        return "", draw(st.sampled_from(ODD))()
    return draw(st.sampled_from(["sd"] * 4 + ["sd_img2img", "sd_inpaint", "sdxl"])), None


@st.composite
def _generate(draw: st.DrawFn) -> ArgumentSet:
    pipe, wrong = draw(_pipes())
    named = {"steps": 1, **draw(_some(REQUEST)), **draw(_some(OPTIONS, 1))}
    if draw(st.integers(0, 3)) == 0:
        named |= draw(_some(CALL, 1))
    if pipe in ("sd_img2img", "sd_inpaint") or draw(st.integers(0, 19)) == 0:
        named |= {"steps": 2, "strength": 0.5, **draw(_some(WITH_IMAGE, 1)), "image": draw(WITH_IMAGE["image"])}
    if pipe == "sd_inpaint":
        named["mask_image"] = draw(WITH_IMAGE["image"])
    values = (draw(_mostly(TEXTS, BAD_TEXTS, 6)), draw(_mostly(CONTROLS, BAD_CONTROLS)))
    return ArgumentSet(verb="generate", pipe=pipe, wrong=wrong, values=values, named=named)


@st.composite
def _schedulers(draw: st.DrawFn) -> dict[str, Any]:
    """A scheduler of diffusers with one or two fields that are others."""
    known = sorted(name for name in dir(diffusers) if "Scheduler" in name)
    name = draw(st.sampled_from([*tiny.SCHEDULERS.values(), *known, "os", "", "UNet2DConditionModel"]))
    config = dict(tiny.SCHEDULE)
    fields = [*config, "timestep_spacing", "trained_betas", "use_karras_sigmas", "solver_order", "algorithm_type"]
    for field_name in draw(st.lists(st.sampled_from(fields), max_size=2)):
        config[field_name] = draw(st.sampled_from(JSON_VALUES))
    return {"class": "StableDiffusionPipeline", "model": "shapes", "scheduler": name, "scheduler_config": config}


@st.composite
def _settings(draw: st.DrawFn) -> Any:
    """Settings with one part that is another; or none."""
    if draw(st.integers(0, 5)) == 0:
        return draw(st.sampled_from(ODD))()
    settings = good_settings()
    inner = ["request.", "controls.", "pipeline.", "scheduler.", "scheduler."]
    part = draw(st.sampled_from(["", *settings, "arguments", "parser", "versions", *inner]))
    value = draw(st.sampled_from(ODD))()
    if part == "request.":
        name = draw(st.sampled_from([*REQUEST, "prompt", "nope"]))
        return {**settings, "request": {**settings["request"], name: value}}
    if part == "controls.":
        name = draw(st.sampled_from(["control", "strength", "window", "layers", "left_open", "preset", "nope"]))
        return {**settings, "controls": [{**settings["controls"][0], name: value}]}
    if part == "pipeline.":
        name = draw(st.sampled_from(["class", "model", "scheduler", "scheduler_config", "dtype", "nope"]))
        return {**settings, "pipeline": {**settings["pipeline"], name: value}}
    if part == "scheduler.":
        return {**settings, "pipeline": draw(_schedulers())}
    if part == "arguments":
        value = {draw(st.sampled_from([*CALL, "record", "image", ""])): value}
    return settings if not part else {**settings, part: value}


@st.composite
def _replay(draw: st.DrawFn) -> ArgumentSet:
    pipe, wrong = draw(_pipes())
    named = {**draw(_some({**REQUEST, "record": OPTIONS["record"], "prompt": _mostly(TEXTS, BAD_TEXTS)}, 2))}
    if draw(st.integers(0, 4)) == 0:
        named["controls"] = draw(_mostly(CONTROLS, BAD_CONTROLS))
    return ArgumentSet(verb="replay", pipe=pipe, wrong=wrong, values=(draw(_settings()),), named=named)


@st.composite
def _load(draw: st.DrawFn) -> ArgumentSet:
    names = _kept(("shapes", "tiny", Path("tiny"), Text("shapes")))
    bad = _kept(BAD_MODELS) + _kept((Path("nowhere"), Path("a\0b"), Path("empty"), Path("\udcff")))
    return ArgumentSet(verb="load", values=(draw(_mostly(names, bad, 2)),), named=draw(_some(LOADED, 2)))


def argument_sets() -> st.SearchStrategy[ArgumentSet]:
    """Return calls, most of them of ``generate``.

    Returns:
        The strategy.
    """
    kinds = [_generate()] * 5 + [_replay()] * 3 + [_load()]
    return st.integers(0, len(kinds) - 1).flatmap(kinds.__getitem__)
