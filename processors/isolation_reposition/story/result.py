"""A story that was told: its images, what made them, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import TypeAdapter

from t2ictl.controls.layouts import Region
from t2ictl.errors import BadSetting
from t2ictl.maps.figures import stacked_grids
from t2ictl.session.cost import Cost
from t2ictl.settings.files import read_settings, write_json, write_png

__all__ = ["Story", "StoryImage"]

COLUMNS = 4
_REGIONS = TypeAdapter(dict[str, Region])


@dataclass(frozen=True, kw_only=True)
class StoryImage:
    """One image of a story, with all that made it.

    Args:
        name: ``"portrait-1"``, ``"scene-1"``, ...
        image: the image.
        settings: those of the story.
        places: where its subjects are, by name.
    """

    name: str
    image: Image.Image
    settings: Mapping[str, Any]
    places: Mapping[str, Region]

    def belongs_to(self, settings: Mapping[str, Any]) -> bool:
        """Return whether the image was made by the story with these settings, on the same pipeline and versions."""
        keys = ("story", "controls", "pipeline", "parser", "versions")
        return all(self.settings.get(key) == settings.get(key) for key in keys)

    def save(self, folder: Path) -> Path:
        """Write it as PNG with its settings inside; all of it, or nothing.

        Args:
            folder: where to.

        Returns:
            The path.
        """
        settings = {**self.settings, "image": self.name, "places": _plain(self.places)}
        return write_png(self.image, folder / f"{self.name}.png", settings)

    @classmethod
    def read(cls, path: Path) -> StoryImage:
        """Read an image back.

        Args:
            path: a file that :meth:`save` wrote.

        Returns:
            The image.

        Raises:
            BadSetting: if it is none.
        """
        settings = read_settings(path)
        name, places = settings.pop("image", None), settings.pop("places", None)
        if not isinstance(name, str) or places is None:
            raise BadSetting(f"{path.name} is no image of a story.", "Use a file that `t2ictl story` wrote.")
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        return cls(name=name, image=image, settings=settings, places=_REGIONS.validate_python(places))


def _plain(places: Mapping[str, Region]) -> dict[str, Any]:
    """Regions as plain JSON data."""
    made: dict[str, Any] = _REGIONS.dump_python(dict(places), mode="json", exclude_none=True)
    return made


@dataclass(kw_only=True)
class Story:
    """The images of a story, and everything that made them.

    Args:
        portraits: image by name of the subject.
        scenes: the images, in the order of the scenes.
        captions: their prompts.
        places: where the subjects of each image are, as it was given, rehearsed or found; by the name of the image
            (``"portrait-1"``, ``"scene-1"``) and the subject's. One that was found nowhere is left out.
        subjects_by_scene: names of the subjects of each scene.
        settings: subjects, scenes, control, request, pipeline and versions as plain JSON data.
        cost: the work of all calls together.
        generations: how many images' worth of denoising each part took; a rehearsal that ended early counts as the
            share of its steps.
    """

    portraits: dict[str, Image.Image]
    scenes: list[Image.Image]
    captions: tuple[str, ...]
    places: Mapping[str, Mapping[str, Region]]
    subjects_by_scene: tuple[tuple[str, ...], ...]
    settings: dict[str, Any]
    cost: Cost
    generations: Mapping[str, float]

    @property
    def sheet(self) -> Image.Image:
        """A contact sheet: the portraits above, the scenes below."""
        scenes = list(zip(self.captions, self.scenes, strict=True))
        return stacked_grids([list(self.portraits.items()), scenes], COLUMNS)

    def save(self, folder: str | Path) -> list[Path]:
        """Write all images with their settings inside, the contact sheet and ``story.json``.

        Args:
            folder: where to; it is made if it is not there. Each file is written whole or not at all.

        Returns:
            The paths, contact sheet first.

        Raises:
            BadSetting: if the folder cannot be made.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadSetting(f"The folder {str(folder)!r} cannot be made: {error}.", "Give another one.") from None
        images = {f"portrait-{number}": each for number, each in enumerate(self.portraits.values(), start=1)}
        images |= {f"scene-{number}": each for number, each in enumerate(self.scenes, start=1)}
        paths = [write_png(self.sheet, folder / "sheet.png", {**self.settings, "image": "sheet"})]
        for name, image in images.items():
            places = self.places.get(name, {})
            paths.append(StoryImage(name=name, image=image, settings=self.settings, places=places).save(folder))
        data = {
            **self.settings,
            "subjects_by_scene": [list(names) for names in self.subjects_by_scene],
            "places": {name: _plain(own) for name, own in self.places.items()},
            "cost": self.cost.to_dict(),
            "generations": dict(self.generations),
        }
        return [*paths, write_json(folder / "story.json", data)]
