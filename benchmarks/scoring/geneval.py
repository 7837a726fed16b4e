"""GenEval: clauses about objects, colors and places, checked on what a detector found.

The logic is the paper's. The detector is another one: Mask2Former Swin-S with the weights that are published for
transformers, not those of mmdetection, so the thresholds are not calibrated for it, and the metric has its own name.

Letters: ``N`` object, ``K`` color, ``Y`` ``X`` rows and columns, ``C`` features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from t2ictl.benchmarks.scoring.base import Score, short
from t2ictl.benchmarks.suites.published.sets import read_set
from t2ictl.errors import BadSetting
from t2ictl.evaluation.judges.loading import loaded

__all__ = ["COLORS", "Detected", "GenEval", "broken_clauses", "relations"]

# Thresholds and colors of the official evaluation; objects are counted only where the detector is very sure.
THRESHOLD, COUNTING_THRESHOLD, MOST_OBJECTS, SLACK = 0.3, 0.9, 16, 0.1
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")
BACKGROUND = (0x99, 0x99, 0x99)
#: GenEval's words for classes that COCO calls otherwise.
IN_COCO = {"computer mouse": "mouse", "tv remote": "remote", "computer keyboard": "keyboard"}

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Detected:
    """One object that was found.

    Args:
        box: left, top, right, bottom (pixels).
        mask_YX: its pixels.
    """

    box: Box
    mask_YX: np.ndarray | None = None


ColorOf = Callable[[Detected, str], str]


def relations(a: Box, b: Box) -> set[str]:
    """Return where one object lies as seen from another.

    With centers ``c`` and sizes ``s`` the offset ``o = c_a - c_b`` is shortened to
    ``r = sign(o) max(|o| - 0.1 (s_a + s_b), 0)``; a relation holds if ``r / |o|`` is more than one half along its axis.

    Args:
        a: left, top, right, bottom of the one.
        b: of the other.

    Returns:
        Some of "left of", "right of", "above", "below".

    Example:
        >>> relations((0, 0, 10, 10), (40, 0, 50, 10)), relations((0, 0, 10, 10), (2, 0, 12, 10))
        ({'left of'}, set())

    Reference:
        Ghosh, Hajishirzi, Schmidt: "GenEval: An Object-Focused Framework for Evaluating Text-to-Image Alignment",
        NeurIPS 2023, arXiv 2310.11513, section 3.
    """
    corners_a, corners_b = np.reshape(a, (2, 2)), np.reshape(b, (2, 2))
    offset = corners_a.mean(axis=0) - corners_b.mean(axis=0)
    sizes = np.abs(corners_a[1] - corners_a[0]) + np.abs(corners_b[1] - corners_b[0])
    shortened = np.sign(offset) * np.maximum(np.abs(offset) - SLACK * sizes, 0)
    if (np.abs(shortened) < 1e-3).all():
        return set()
    x, y = shortened / np.linalg.norm(offset)
    found = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {name for name, holds in found.items() if holds}


def broken_clauses(
    found: Mapping[str, Sequence[Detected]],
    include: Sequence[Mapping[str, Any]],
    exclude: Sequence[Mapping[str, Any]],
    color_of: ColorOf,
) -> list[str]:
    """Check an image against the clauses of its prompt.

    A clause of ``include`` reads the ``count`` surest objects of its class: there must be so many, each of the
    color it names, and each in its relation to each object of the earlier clause it names, which must hold itself. A
    clause of ``exclude`` is broken by ``count`` or more objects.

    Args:
        found: objects by class, the surest first.
        include: what must be there: ``class``, ``count``, and perhaps ``color`` or ``position`` (relation, number of
            the clause that it is relative to).
        exclude: what must not be there: ``class`` and ``count``.
        color_of: names the color of an object of a class.

    Returns:
        What is wrong, one entry a broken clause; empty if the image is right.

    Example:
        >>> clock = Detected(box=(0, 0, 9, 9))
        >>> include, exclude = [{"class": "clock", "count": 1}], [{"class": "clock", "count": 2}]
        >>> broken_clauses({"clock": [clock, clock]}, include, exclude, lambda each, name: "red")
        ['2 clock, at most 1 wanted']
    """
    wrong: list[str] = []
    groups: list[Sequence[Detected] | None] = []
    for clause in include:
        objects = list(found.get(clause["class"], ()))[: clause["count"]]
        problem = _problem(clause, objects, groups, color_of)
        groups.append(objects if problem is None else None)
        wrong += [] if problem is None else [problem]
    for clause in exclude:
        count = len(found.get(clause["class"], ()))
        if count >= clause["count"]:
            wrong.append(f"{count} {clause['class']}, at most {clause['count'] - 1} wanted")
    return wrong


def _problem(
    clause: Mapping[str, Any],
    objects: Sequence[Detected],
    groups: Sequence[Sequence[Detected] | None],
    color_of: ColorOf,
) -> str | None:
    name, count = clause["class"], clause["count"]
    if len(objects) < count:
        return f"{len(objects)} {name}, {count} wanted"
    if "color" in clause:
        colors = [color_of(each, name) for each in objects]
        if colors.count(clause["color"]) < count:
            return f"{name} is {', '.join(colors)}, {clause['color']} wanted"
    if "position" in clause:
        relation, number = clause["position"]
        others = groups[number]
        if others is None:
            return f"{name} has nothing to be {relation}"
        if any(relation not in relations(each.box, other.box) for each in objects for other in others):
            return f"{name} is not {relation} the other"
    return None


class GenEval:
    """GenEval's clauses: 1 for an image that fulfils all of its prompt's, 0 for any other.

    Args:
        models: a ``Mask2FormerForUniversalSegmentation`` of COCO instances and a ``CLIPModel``, with a comma between.
        data: folder with GenEval's metadata, whose clauses belong to the prompts.
        device: where to compute.

    Reference:
        Ghosh, Hajishirzi, Schmidt, NeurIPS 2023, arXiv 2310.11513.
    """

    def __init__(self, models: str, *, data: str, device: str = "cpu") -> None:
        import transformers

        detector, _, clip = models.partition(",")
        self._prompts = {each.prompt: each for each in read_set("geneval", Path(data))}
        self._detector, self._prepare = loaded(transformers.Mask2FormerForUniversalSegmentation, detector, device)
        self._clip, self._processor = loaded(transformers.CLIPModel, clip, device)
        self._classes = {str(name): int(number) for number, name in self._detector.config.id2label.items()}
        self._colors: dict[str, torch.Tensor] = {}
        self.name = f"geneval[hf,{short(detector)},{short(clip)}]"
        self.facts = {"detector": detector, "clip": clip, "thresholds": [THRESHOLD, COUNTING_THRESHOLD]}

    def __call__(self, image: Image.Image, prompt: str) -> Score:
        """Check one given_image; ``parts`` names broken clauses."""
        if prompt not in self._prompts:
            raise BadSetting(f"The prompt {prompt!r} is not one of GenEval's.", "Run the suite geneval first.")
        known = self._prompts[prompt]
        include, exclude = known.facts["include"], known.facts["exclude"]
        given_image = image.convert("RGB")
        threshold = COUNTING_THRESHOLD if known.category == "counting" else THRESHOLD
        found = self._find(given_image, {clause["class"] for clause in (*include, *exclude)}, threshold)
        wrong = broken_clauses(found, include, exclude, lambda each, name: self._color(given_image, each, name))
        return Score(value=float(not wrong), parts=dict.fromkeys(wrong, 0.0))

    @torch.no_grad()
    def _find(self, image: Image.Image, names: set[str], threshold: float) -> dict[str, list[Detected]]:
        """Objects of some classes, the surest first."""
        numbers = {name: self._number(name) for name in names}
        inputs = self._prepare(images=image, return_tensors="pt").to(self._detector.device)
        made = self._prepare.post_process_instance_segmentation(
            self._detector(**inputs), threshold=0.0, target_sizes=[image.size[::-1]], return_binary_maps=True
        )[0]
        maps = [] if made["segmentation"] is None else made["segmentation"].cpu().numpy() > 0
        pairs = sorted(zip(made["segments_info"], maps, strict=True), key=lambda pair: pair[0]["score"], reverse=True)
        found: dict[str, list[Detected]] = {}
        for name, number in numbers.items():
            sure = [
                mask for info, mask in pairs if info["label_id"] == number and info["score"] > threshold and mask.any()
            ]
            found[name] = [Detected(box=_box(mask), mask_YX=mask) for mask in sure[:MOST_OBJECTS]]
        return found

    def _number(self, name: str) -> int:
        known = IN_COCO.get(name, name)
        if known not in self._classes:
            raise BadSetting(f"The detector knows no {known!r}.", "Use one for the classes of COCO.")
        return self._classes[known]

    @torch.no_grad()
    def _color(self, image: Image.Image, each: Detected, name: str) -> str:
        """The color whose texts are nearest to the object alone, on gray."""
        alone = Image.new("RGB", image.size, BACKGROUND)
        mask = None if each.mask_YX is None else Image.fromarray(each.mask_YX.astype(np.uint8) * 255)
        alone.paste(image, mask=mask)
        inputs = self._processor(images=alone.crop(each.box), return_tensors="pt")
        features_C = self._pooled(self._clip.get_image_features(**inputs.to(self._clip.device)))[0]
        return COLORS[int((self._texts(name) @ torch.nn.functional.normalize(features_C, dim=-1)).argmax())]

    def _texts(self, name: str) -> torch.Tensor:
        """``KC``: of each color the mean over templates, on the sphere."""
        if name not in self._colors:
            texts = [template.format(color=color, name=name) for color in COLORS for template in TEMPLATES]
            inputs = self._processor(text=texts, return_tensors="pt", padding=True, truncation=True)
            features = self._pooled(self._clip.get_text_features(**inputs.to(self._clip.device)))
            each = torch.nn.functional.normalize(features, dim=-1).unflatten(0, (len(COLORS), len(TEMPLATES)))
            self._colors[name] = torch.nn.functional.normalize(each.mean(dim=1), dim=-1)
        return self._colors[name]

    @staticmethod
    def _pooled(features: Any) -> torch.Tensor:
        """The features themselves, which newer versions of transformers wrap."""
        found: torch.Tensor = features if isinstance(features, torch.Tensor) else features.pooler_output
        return found


def _box(mask_YX: np.ndarray) -> Box:
    """Left, top, right, bottom; right and bottom lie behind the last pixel."""
    rows, columns = np.flatnonzero(mask_YX.any(axis=1)), np.flatnonzero(mask_YX.any(axis=0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
