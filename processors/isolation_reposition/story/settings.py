"""What a story is made of, and its file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from t2ictl.errors import BadSetting
from t2ictl.generation import Request
from t2ictl.processors.isolation_reposition.story.scenes import Scene
from t2ictl.processors.isolation_reposition.subjects import Subject
from t2ictl.settings.fields import setting, settings_class
from t2ictl.settings.files import read_settings
from t2ictl.settings.request import LARGEST_SIDE, MOST_STEPS
from t2ictl.settings.yaml_files import read_yaml

__all__ = ["StorySettings", "read_story"]


@settings_class
class StorySettings:
    """What a story is made of.

    Args:
        subjects: who is in it.
        scenes: its images.
        places: where a scene does not say where its subjects are: they are found while it is made (``"online"``),
            or in a plain run of the same noise before it (``"rehearsal"``), which composites need.
        rehearsal: share of the steps after which such a run ends; with a detector it goes to the end.
        seed: of the first portrait; the other portraits, then the scenes, have the next ones.
        steps: denoising steps.
        guidance_scale: strength of classifier-free guidance; 1 or less is none.
        negative_prompt: what guidance leads away from.
        width: image width (pixels); None for the model's own.
        height: image height (pixels); None for the model's own.
        parser: how words are found.
        batch: most images in a call.
        memory_mb: most memory (MiB, of the host) for what later calls read of the portraits. Where it does not suffice
            portraits are made again in every call.
    """

    subjects: tuple[Subject, ...] = setting(default=(), help="who is in the story")
    scenes: tuple[Scene, ...] = setting(default=(), help="its images")
    places: Literal["online", "rehearsal"] = setting(default="online", help="how subjects without a place are found")
    rehearsal: float = setting(default=0.4, help="share of the steps of a rehearsal", low=0.05, high=1.0)
    seed: int = setting(default=0, help="seed of the first portrait; the others have the next ones", low=0)
    steps: int = setting(default=25, help="denoising steps", low=1, high=MOST_STEPS)
    guidance_scale: float = setting(default=7.5, help="strength of classifier-free guidance; 1: none", low=0.0)
    negative_prompt: str = setting(default="", help="what guidance leads away from")
    width: int | None = setting(
        default=None, help="image width (pixels); empty: the model's own", low=8, high=LARGEST_SIDE
    )
    height: int | None = setting(
        default=None, help="image height (pixels); empty: the model's own", low=8, high=LARGEST_SIDE
    )
    parser: str = setting(default="grammar", help="how words are found: grammar or spacy")
    batch: int = setting(default=8, help="most images in a call", low=2)
    memory_mb: float = setting(default=4096.0, help="most memory for what is kept of portraits (MiB)", low=0.0)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON data."""
        data: dict[str, Any] = TypeAdapter(StorySettings).dump_python(self, mode="json")
        return data

    def request(self, prompts: Sequence[str]) -> Request:
        """What a call asks the pipeline for, but for its seeds."""
        return Request(
            prompt=tuple(prompts),
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            negative_prompt=self.negative_prompt,
            width=self.width,
            height=self.height,
            parser=self.parser,
        )


def read_story(path: str | Path) -> tuple[StorySettings, dict[str, Any]]:
    """Read a story from a YAML or JSON file, or from an image or ``story.json`` of a story that was told.

    Args:
        path: the file. Its keys are the fields of :class:`StorySettings`, and ``control`` with fields of the method.
            Files of images and masks that it names are sought beside it.

    Returns:
        The story, and the fields of the method.

    Raises:
        BadSetting: if the file is not there, is not YAML, or has an unknown key or a bad value.
    """
    path = Path(path)
    data = read_settings(path) if path.suffix.lower() == ".png" else read_yaml(path, "story")
    data = data.get("story", data) if isinstance(data, dict) else data
    if not isinstance(data, dict):
        raise BadSetting(f"{path.name} is no story.", "It needs the keys subjects: and scenes:.")
    data = dict(data)
    control = data.pop("control", None) or {}
    known = list(StorySettings.__dataclass_fields__)
    unknown = [key for key in data if key not in known]
    if unknown or not isinstance(control, dict):
        raise BadSetting(
            f"{path.name} has the unknown key {unknown[0]!r}." if unknown else f"control: {control!r} is no mapping.",
            f"A story has the keys {', '.join([*known, 'control'])}.",
        )
    for key, inner in (("subjects", ("image", "mask")), ("scenes", ("masks",))):
        data[key] = [_beside(entry, inner, path.parent) for entry in data.get(key) or ()]
    return StorySettings(**data), control


def _beside(entry: Any, keys: Sequence[str], folder: Path) -> Any:
    """An entry whose files are sought in a folder."""
    if not isinstance(entry, dict):
        return entry
    return {key: _placed(value, folder) if key in keys else value for key, value in entry.items()}


def _placed(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return {key: _placed(each, folder) for key, each in value.items()}
    is_file = isinstance(value, str) and not value.startswith(("data:", "sha256:"))
    return str(folder / value) if is_file else value
