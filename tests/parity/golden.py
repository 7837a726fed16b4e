"""Golden numbers of published code, and controls run on them.

They lie in the folder that ``T2ICTL_PARITY`` names, or beside the checkout; where neither is there, a small extract in
``tests/data/parity`` takes their place.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from t2ictl.attention.batch import BatchLayout
from t2ictl.controls.base import Control, PlanContext
from t2ictl.families import find_adapter
from t2ictl.guidance.objectives import Losses, Objective
from t2ictl.prompts.prompt import Phrase, Prompt, Span
from t2ictl.prompts.tokens import Encoding
from t2ictl.settings.windows import Step
from tests.tiny import sd

BESIDE = Path(__file__).parents[3] / "shared" / "data" / "parity"
EXTRACT = Path(__file__).parents[1] / "data" / "parity"


def folder() -> Path:
    named = os.environ.get("T2ICTL_PARITY")
    return Path(named) if named else BESIDE if BESIDE.is_dir() else EXTRACT


class Case:
    """The arrays of one case; raw maps that it names are there too."""

    def __init__(self, method: str, name: str) -> None:
        self.name = name
        self._own, self._inputs = _load(method), _load("inputs")

    def __contains__(self, array: str) -> bool:
        return f"{self.name}.{array}" in self._own

    def __getitem__(self, array: str) -> Any:
        found = self._own[f"{self.name}.{array}"]
        return str(found) if found.dtype.kind == "U" and not found.ndim else found

    def number(self, array: str) -> float:
        return float(self[array])

    def tensor(self, array: str) -> Tensor:
        return torch.from_numpy(self[array].copy())

    def raw(self, array: str = "input") -> Tensor:
        """Raw attention that the case names, as one row of a batch."""
        return torch.from_numpy(self._inputs[self[array]].copy())[None]


_LOADED: dict[Path, dict[str, np.ndarray[Any, Any]]] = {}


def _load(method: str) -> dict[str, np.ndarray[Any, Any]]:
    path = folder() / f"{method}.npz"
    if path not in _LOADED:
        with np.load(path) as file:
            _LOADED[path] = dict(file)
    return _LOADED[path]


def cases(method: str, prefix: str = "") -> list[str]:
    """The cases of a method, each once, in order."""
    names = dict.fromkeys(key.partition(".")[0] for key in _load(method))
    return [name for name in names if name.startswith(prefix)]


# -- controls on raw maps ----------------------------------------------------------------------


class GivenPrompt(Prompt):
    """A prompt whose objects and words are given, each by the positions of its tokens."""

    def __init__(self, tokens: int, end: int, groups: Sequence[Sequence[Sequence[int]]], words: Sequence[int]) -> None:
        roles = ("start", *["item"] * (end - 1), "end", *["pad"] * (tokens - end - 1))
        text = " ".join(f"w{each}" for each in range(1, end))
        encoding = Encoding(text=text, ids=tuple(range(tokens)), offsets=(None,) * tokens, roles=roles)
        super().__init__(text=text, encodings=(encoding,))
        self.__dict__["given"] = (groups, words)

    def objects(self) -> tuple[Phrase, ...]:
        """Each group: its noun is the last one."""
        found = []
        for group in self.__dict__["given"][0]:
            *attributes, noun = (span(positions) for positions in group)
            found.append(Phrase(span=noun, noun=noun, attributes=tuple(attributes)))
        return tuple(found)

    def words(self, marks: bool = False) -> tuple[Span, ...]:
        return tuple(span([position]) for position in self.__dict__["given"][1])

    def find(self, query: str, occurrence: int = 1) -> Span:
        """By the name that :func:`span` gives."""
        return span([int(query[1:])])


def span(positions: Sequence[int]) -> Span:
    """A word at some positions of the text row."""
    return Span(text=f"w{positions[0]}", start=positions[0], end=positions[0] + 1, by_encoder=(tuple(positions),))


def positions(table: np.ndarray[Any, Any]) -> list[list[list[int]]]:
    """Groups of words of positions, without the padding."""
    table = table if table.ndim == 3 else table[..., None]
    words = [[[int(each) for each in word if each >= 0] for word in group] for group in table]
    return [[word for word in group if word] for group in words]


def objective(
    control: Control,
    raw_BYXT: Tensor,
    groups: Sequence[Sequence[Sequence[int]]],
    words: Sequence[int] = (),
    end: int | None = None,
) -> Objective:
    """The objective that a control plans for a prompt with these objects."""
    tokens = raw_BYXT.shape[-1]
    prompt = GivenPrompt(tokens, tokens - 1 if end is None else end, groups, words)
    batch = BatchLayout.from_counts(prompts=1, images_per_prompt=1, guided=False)
    context = PlanContext(adapter=find_adapter(sd()), prompts=(prompt,), batch=batch)
    return control.plan(context).objectives[0]


def step(index: int = 0) -> Step:
    return Step(index=index, total=50, timestep=500.0, requested=50)


def value_and_gradients(given: Objective, *maps: Tensor, at: Step | None = None) -> tuple[Losses, list[Tensor]]:
    """The losses of an objective at raw maps, and the gradient of their sum with respect to each of these."""
    leaves = [each.clone().requires_grad_(True) for each in maps]
    losses = given.evaluate(tuple(leaves) if len(leaves) > 1 else leaves[0], at or step())
    gradients = torch.autograd.grad(losses.total.sum(), leaves, allow_unused=True)
    return losses, [
        torch.zeros_like(leaf) if each is None else each for leaf, each in zip(leaves, gradients, strict=True)
    ]


# -- tolerances of the data --------------------------------------------------------------------


def assert_number(found: Tensor | float, golden: float, relative: float = 1e-10, absolute: float = 1e-13) -> None:
    found = float(found.detach()) if isinstance(found, Tensor) else found
    assert abs(found - golden) <= max(relative * abs(golden), absolute), (found, golden)


def assert_array(found: Tensor, golden: Tensor, relative: float = 1e-9) -> None:
    """Arrays of 400 numbers or more were rounded to a grid of their largest entry; smaller ones were not."""
    largest = float(golden.abs().max())
    bound = relative * largest + 1e-12 if golden.numel() >= 400 or relative > 1e-9 else max(1e-10 * largest, 1e-13)
    assert found.shape == golden.shape
    assert float((found - golden).abs().max()) <= bound, (float((found - golden).abs().max()), bound)


def assert_terms(losses: Losses, golden: Mapping[str, float]) -> None:
    for name, number in golden.items():
        assert_number(losses.terms[name], number)
