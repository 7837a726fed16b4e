"""How alike a subject is in all images of a story, by an image model.

``t2ictl bench study similarity STORY... --model FOLDER``

For models whose images no exact judge can read. A story is a folder that ``t2ictl story`` wrote: it says where each
subject is. Every subject is cut out of every scene and compared with the portraits, cut out in the same way: cosine of
the features of DINOv2 or CLIP. A subject that was found nowhere counts as a miss, with similarity 0. It is as good as
the places are: give boxes or masks, or a detector, where the maps of words are too coarse.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import t2ictl
from t2ictl import Region
from t2ictl.benchmarks.arguments import ArgumentParser
from t2ictl.errors import BadSetting
from t2ictl.evaluation.statistics.intervals import difference_bounds
from t2ictl.evaluation.statistics.resampling import seed_of

__all__ = ["Embed", "Likeness", "cut_out", "embedder", "likenesses", "main", "summary"]

#: Gives unit vectors ``e_BD`` of images.
Embed = Callable[[Sequence[Image.Image]], Tensor]
GRAY = (128, 128, 128)
RESAMPLES = 9999


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """One subject in one scene.

    Args:
        scene: number of the scene, from 1.
        subject: its name.
        own: cosine with its own portrait; 0 if it was found nowhere.
        other: largest cosine with another subject's portrait; None if there is no other.
        missing: whether it was found nowhere.
    """

    scene: int
    subject: str
    own: float
    other: float | None
    missing: bool

    @property
    def swapped(self) -> bool:
        """Whether it is more like another subject's portrait than like its own."""
        return not self.missing and self.other is not None and self.other > self.own


def cut_out(image: Image.Image, region: Region) -> Image.Image:
    """Cut a region out of an image: its bounding box, gray where it is not.

    Args:
        image: the image.
        region: box or mask.

    Returns:
        An RGB image.

    Example:
        >>> cut_out(Image.new("RGB", (8, 8), "red"), Region(word="cat", box=(0, 0, 0.5, 1))).size
        (4, 8)
    """
    inside = region.cells(image.height, image.width).numpy()
    rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
    pixels = np.where(inside[..., None], np.asarray(image.convert("RGB")), np.array(GRAY, dtype=np.uint8))
    return Image.fromarray(pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def embedder(name: str, device: str = "cpu") -> Embed:
    """Load an image model of transformers: DINOv2, CLIP, or another one with features of whole images.

    Args:
        name: a folder, or an id on the hub.
        device: where to put it.

    Returns:
        The function that embeds images.

    Raises:
        BadSetting: if it cannot be loaded.
    """
    from transformers import AutoImageProcessor, AutoModel

    try:
        prepare, model = AutoImageProcessor.from_pretrained(name), AutoModel.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BadSetting(
            f"The image model {name!r} cannot be loaded: {reason}",
            "Give the folder or the hub id of DINOv2 or CLIP, such as facebook/dinov2-base.",
        ) from None
    model = model.to(device).eval()

    def embed(images: Sequence[Image.Image]) -> Tensor:
        pixels = prepare(images=list(images), return_tensors="pt")["pixel_values"].to(device)
        with torch.no_grad():
            return torch.nn.functional.normalize(_features(model, pixels).float(), dim=-1).cpu()

    return embed


def _features(model: Any, pixels: Tensor) -> Tensor:
    """Features of whole images: CLIP's projected ones, of others the first token after the last layer."""
    if hasattr(model, "get_image_features"):
        found = model.get_image_features(pixel_values=pixels)
        return found if isinstance(found, Tensor) else found.pooler_output
    found = model(pixel_values=pixels)
    projected = getattr(found, "image_embeds", None)
    return found.last_hidden_state[:, 0] if projected is None else projected


def likenesses(folder: Path, embed: Embed) -> tuple[Likeness, ...]:
    """Compare the subjects of all scenes of a story with the portraits.

    Args:
        folder: that ``t2ictl story`` wrote.
        embed: gives unit vectors of images.

    Returns:
        One a scene and subject, in the order of the scenes.

    Raises:
        BadSetting: if the folder holds no story, or the place of a subject in its own portrait is not known.
    """
    try:
        data = t2ictl.read_settings(folder / "story.json")
        places, subjects = data["places"], [subject["name"] for subject in data["story"]["subjects"]]
    except (OSError, ValueError, KeyError) as error:
        raise BadSetting(f"{str(folder)!r} holds no story ({error}).", "Give a folder of `t2ictl story`.") from None
    shown = {name: _cut(folder, places, f"portrait-{number}", name) for number, name in enumerate(subjects, start=1)}
    lost = [name for name, image in shown.items() if image is None]
    if lost:
        raise BadSetting(
            f"In {str(folder)!r} nothing says where {lost[0]!r} is in its portrait.", "Give it a box or a mask."
        )
    portraits_SD = embed([image for image in shown.values() if image is not None])
    found = []
    for number in range(1, len(data["story"]["scenes"]) + 1):
        own = {name: _cut(folder, places, f"scene-{number}", name) for name in data["subjects_by_scene"][number - 1]}
        found += _compared(number, own, subjects, portraits_SD, embed)
    return tuple(found)


def _cut(folder: Path, places: dict[str, Any], file: str, name: str) -> Image.Image | None:
    region = places.get(file, {}).get(name)
    return None if region is None else cut_out(Image.open(folder / f"{file}.png"), Region(**region))


def _compared(
    scene: int, own: dict[str, Image.Image | None], subjects: Sequence[str], portraits_SD: Tensor, embed: Embed
) -> list[Likeness]:
    there = {name: image for name, image in own.items() if image is not None}
    alike_BS = embed(list(there.values())) @ portraits_SD.T if there else torch.zeros(0, len(subjects))
    found = []
    for name in own:
        if name not in there:
            found.append(Likeness(scene=scene, subject=name, own=0.0, other=None, missing=True))
            continue
        alike_S, place = alike_BS[list(there).index(name)], subjects.index(name)
        others = [float(each) for number, each in enumerate(alike_S) if number != place]
        other = max(others) if others else None
        found.append(Likeness(scene=scene, subject=name, own=float(alike_S[place]), other=other, missing=False))
    return found


def summary(stories: Sequence[Sequence[Likeness]]) -> dict[str, tuple[float, float, float]]:
    """Return means over stories with intervals.

    Args:
        stories: likenesses of each.

    Returns:
        ``identity`` (cosine with the own portrait), ``swap`` and ``missing`` (shares): mean, and its 95 % interval by a
        bootstrap of whole stories; of one story both ends are not a number.

    Example:
        >>> one = Likeness(scene=1, subject="cat", own=0.5, other=None, missing=False)
        >>> summary([[one]])["identity"][0]
        0.5
    """
    values_PC = np.array(
        [[np.mean([getattr(each, name) for each in one]) for name in ("own", "swapped", "missing")] for one in stories]
    )
    names = ("identity", "swap", "missing")
    if len(stories) < 2:
        return {
            name: (float(value), float("nan"), float("nan")) for name, value in zip(names, values_PC[0], strict=True)
        }
    bounds = difference_bounds(values_PC, RESAMPLES, seed_of("similarity", 0)).bounds
    ends = zip(bounds.estimate, bounds.low, bounds.high, strict=True)
    return {name: (float(mean), float(low), float(high)) for name, (mean, low, high) in zip(names, ends, strict=True)}


def main(arguments: list[str] | None = None) -> int:
    """Compare, and print one line a subject and scene, then the means."""
    parser = ArgumentParser(prog="t2ictl bench study similarity", description=__doc__)
    parser.add_argument("stories", type=Path, nargs="+", help="folders that t2ictl story wrote")
    parser.add_argument("--model", required=True, help="folder or hub id of DINOv2 or CLIP")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")
    options = parser.parse_args(arguments)
    embed = embedder(options.model, options.device)
    found = {str(folder): likenesses(folder, embed) for folder in options.stories}
    means = summary(list(found.values()))
    if options.json:
        rows = {folder: [asdict(each) for each in own] for folder, own in found.items()}
        print(json.dumps({"stories": rows, "means": means}, indent=1).replace("NaN", "null"))
        return 0
    for folder, own in found.items():
        for each in own:
            other = "" if each.other is None else f", best other {each.other:.3f}{' SWAPPED' if each.swapped else ''}"
            print(
                f"{folder} scene {each.scene} {each.subject}: "
                + ("missing" if each.missing else f"{each.own:.3f}{other}")
            )
    for name, (mean, low, high) in means.items():
        print(f"{name} {mean:.3f} [{low:.3f}, {high:.3f}], {len(found)} stories")
    return 0
