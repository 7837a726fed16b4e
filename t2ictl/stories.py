"""A story that was told: its pictures, what made them, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import TypeAdapter

from t2ictl.cost import Cost
from t2ictl.errors import BadSetting
from t2ictl.layouts import Region
from t2ictl.pictures import stacked
from t2ictl.settings import write_json, write_png

__all__ = ["Story"]

COLUMNS = 4


@dataclass(kw_only=True)
class Story:
    """The pictures of a story, and everything that made them.

    Args:
        portraits: picture by name of the subject.
        scenes: the pictures, in the order of the scenes.
        captions: their prompts.
        places: where the subjects of each picture are, as it was given, rehearsed or found; by the name of the picture
            (``"portrait-1"``, ``"scene-1"``) and the subject's. One that was found nowhere is left out.
        there: names of the subjects of each scene.
        settings: subjects, scenes, control, request, pipeline and versions as plain JSON data.
        cost: the work of all calls together.
        generations: how many pictures' worth of denoising each part took; a rehearsal that ended early counts as the
            share of its steps.
    """

    portraits: dict[str, Image.Image]
    scenes: list[Image.Image]
    captions: tuple[str, ...]
    places: Mapping[str, Mapping[str, Region]]
    there: tuple[tuple[str, ...], ...]
    settings: dict[str, Any]
    cost: Cost
    generations: Mapping[str, float]

    @property
    def sheet(self) -> Image.Image:
        """A contact sheet: the portraits above, the scenes below."""
        return stacked([list(self.portraits.items()), list(zip(self.captions, self.scenes, strict=True))], COLUMNS)

    def save(self, folder: str | Path) -> list[Path]:
        """Write all pictures with their settings inside, the contact sheet and ``story.json``.

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
        pictures = {f"portrait-{number}": each for number, each in enumerate(self.portraits.values(), start=1)}
        pictures |= {f"scene-{number}": each for number, each in enumerate(self.scenes, start=1)}
        kept = {"sheet": self.sheet, **pictures}
        paths = [
            write_png(image, folder / f"{name}.png", {**self.settings, "picture": name}) for name, image in kept.items()
        ]
        places = TypeAdapter(dict[str, dict[str, Region]]).dump_python(
            {picture: dict(own) for picture, own in self.places.items()}, mode="json", exclude_none=True
        )
        data = {
            **self.settings,
            "there": [list(names) for names in self.there],
            "places": places,
            "cost": self.cost.to_dict(),
            "generations": dict(self.generations),
        }
        return [*paths, write_json(folder / "story.json", data)]
