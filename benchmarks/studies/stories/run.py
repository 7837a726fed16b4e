"""Stories, told by several arms.

``t2ictl bench study stories --out DIR --split tune --stories 4``

Every story is told by every arm from the same noise, portraits and scenes in one call. The run can be stopped at any
time: what is there is not made again. ``--table`` prints the tables of a folder.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from t2ictl.benchmarks.arguments import ArgumentParser
from t2ictl.benchmarks.embedded import add_model, as_measured, identity, open_model
from t2ictl.benchmarks.studies.stories.arms import ARMS, Arm, StoryImages, arm_settings, arms_of
from t2ictl.benchmarks.studies.stories.measures import StoryReading, read_portrait, read_scene
from t2ictl.benchmarks.studies.stories.sheet import contact_sheet
from t2ictl.benchmarks.studies.stories.store import StoryStore, digest
from t2ictl.benchmarks.studies.stories.suite import KINDS, Story, stories
from t2ictl.benchmarks.studies.stories.table import show
from t2ictl.errors import BadSetting
from t2ictl.shapes.embedded import DEFAULT

__all__ = ["main", "read_story", "tell"]


def read_story(story: Story, images: StoryImages) -> StoryReading:
    """Read all images of a story.

    Args:
        story: what was asked for.
        images: what was made.

    Returns:
        The reading.
    """
    portraits = zip(images.portraits, story.subjects, strict=True)
    scenes = zip(images.scenes, story.scenes, strict=True)
    return StoryReading(
        portraits=tuple(read_portrait(image, shape) for image, shape in portraits),
        scenes=tuple(read_scene(image, prompt, story.subjects) for image, prompt in scenes),
    )


def tell(
    pipe: Any,
    told: Sequence[Story],
    arms: Mapping[str, Arm],
    store: StoryStore,
    *,
    steps: int,
    guidance: float,
    images: int = 0,
) -> int:
    """Run the arms on the stories that are not there yet.

    Args:
        pipe: the plain pipeline.
        told: the stories.
        arms: by label.
        store: where rows go.
        steps: of the scheduler.
        guidance: scale of classifier-free guidance.
        images: the first so many stories, all arms of which are made in this call, get a contact sheet.

    Returns:
        How many stories were told.

    Raises:
        BadSetting: if an arm had other settings before.
    """
    settings = {label: arm_settings(arm) for label, arm in arms.items()}
    done, count = store.done(settings), 0
    for number, story in enumerate(told):
        sheet: dict[str, StoryImages] = {}
        for label, arm in arms.items():
            if (story.key, label) in done:
                continue
            start = time.perf_counter()
            sheet[label] = made = arm(pipe, story, steps, guidance)
            seconds = time.perf_counter() - start
            store.append(
                {
                    "story": story.key,
                    "arm": label,
                    "arm_hash": digest(settings[label]),
                    "arm_settings": settings[label],
                    "seconds": round(seconds, 3),
                    "reading": read_story(story, made).to_dict(),
                }
            )
            count += 1
            print(f"{story.key} {label} {seconds:.1f} s", flush=True)
        if sheet and number < images:
            store.save_sheet(story.key, contact_sheet(story, sheet), list(sheet))
    return count


def _chosen(labels: str, file: Path | None) -> dict[str, Arm]:
    """Arms by their labels, and all of a file."""
    more = {} if file is None else arms_of(file)
    wanted = [label for label in labels.split(",") if label]
    unknown = [label for label in wanted if label not in ARMS]
    if unknown:
        raise BadSetting(f"There is no arm {unknown[0]!r}.", f"Arms are {', '.join(ARMS)}.")
    return {label: ARMS[label] for label in wanted} | more


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(prog="t2ictl bench study stories", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    add_model(parser)
    parser.add_argument("--split", choices=("tune", "report"), default="tune")
    parser.add_argument("--kind", choices=KINDS, default="open", help="told: portraits' prompts name color and texture")
    parser.add_argument("--stories", type=int, default=50, help="stories of each number of subjects")
    parser.add_argument("--subjects", type=int, nargs="+", choices=(2, 3), default=[2, 3])
    parser.add_argument("--arms", default=",".join(ARMS), help=f"labels with commas between, of {', '.join(ARMS)}")
    parser.add_argument("--arms-file", type=Path, help="YAML with further arms: label: {control: ..., options: ...}")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=0, help="contact sheets of the first so many stories")
    parser.add_argument("--table", action="store_true", help="print the tables of the folder, and make nothing")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run, or print the tables of a run."""
    options = as_measured(_parser().parse_args(arguments))
    if options.table:
        store = StoryStore(options.out, None)
        print(show(store.header["settings"], store.rows()))
        return 0
    arms = _chosen(options.arms, options.arms_file)
    settings = {
        "instrument": identity(options.model),
        "model": "packaged" if options.model == DEFAULT else options.model,
        "kind": options.kind,
        "split": options.split,
        "steps": options.steps,
        "guidance": options.guidance,
    }
    store = StoryStore(options.out, settings)
    torch.set_num_threads(options.threads)
    pipe = open_model(options.model, options.device)
    told = [stories(options.split, subjects, options.stories, options.kind) for subjects in options.subjects]
    for each in told:
        tell(pipe, each, arms, store, steps=options.steps, guidance=options.guidance, images=options.images)
    print(show(store.header["settings"], store.rows()))
    return 0
