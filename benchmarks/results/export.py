"""Images of a run in the folders that the official evaluators read.

The evaluators of published sets find prompt and number of an image in its path. Ours are named by prompt id and seed,
so they are copied under the names that each tool wants.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from t2ictl.benchmarks.runs.table import checked_image, read_results
from t2ictl.benchmarks.suites.published.sets import read_set
from t2ictl.errors import BadSetting

__all__ = ["LAYOUTS", "export_run"]

LAYOUTS = ("t2i_compbench", "attend_and_excite", "geneval")


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One image of the run.

    Args:
        prompt_id: of its prompt, without the split.
        category: of its prompt.
        prompt: the text.
        number: which image of the prompt, from 0, in the order of the seeds.
        path: where it is.
    """

    prompt_id: str
    category: str
    prompt: str
    number: int
    path: Path


def export_run(run: Path, arm: str, layout: str, out: Path, data: str | None = None) -> int:
    """Copy the images of an arm into an official layout.

    Args:
        run: folder of a run that is done.
        arm: which of its arms.
        layout: one of :data:`LAYOUTS`.
        out: the folder to make; it must not hold anything.
        data: for GenEval the folder with its metadata, which the evaluator wants beside the images.

    Returns:
        How many images were copied.

    Raises:
        BadSetting: for an unknown layout or arm, a run with missing, changed or failed images, a prompt or category
            that the official tool could not read back from a file name, or a folder that is not empty; nothing is
            written then.
    """
    if layout not in LAYOUTS:
        raise BadSetting(f"There is no layout {layout!r}.", f"Layouts: {', '.join(LAYOUTS)}.")
    if out.exists() and any(out.iterdir()):
        raise BadSetting(f"The folder {str(out)!r} is not empty.", "Name a new one: tools count all files.")
    shots = _shots(run, arm)
    named: Callable[[Sequence[Shot]], Iterator[tuple[Shot, str]]] = {
        "t2i_compbench": _compbench,
        "attend_and_excite": _attend_and_excite,
        "geneval": _geneval,
    }[layout]
    files = list(named(shots))
    _check_places(files, run, out)
    metadata = _metadata(shots, data) if layout == "geneval" else {}
    for shot, name in files:
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(shot.path, target)
    for prompt_id, line in metadata.items():
        (out / prompt_id / "metadata.jsonl").write_text(f"{json.dumps(line)}\n", encoding="utf-8")
    return len(files)


def _check_places(files: Sequence[tuple[Shot, str]], run: Path, out: Path) -> None:
    """Refuse names that lead out of the folder, and images that are not of the run: tables may come from anybody."""
    for shot, name in files:
        if not (out / name).resolve().is_relative_to(out.resolve()):
            raise BadSetting(f"The image {name!r} would lie outside of {str(out)!r}.", "Look at the run's categories.")
        if not shot.path.resolve().is_relative_to(run.resolve()):
            raise BadSetting(f"The image {str(shot.path)!r} is not in the run.", "Look at the run's table.")


def _shots(run: Path, arm: str) -> list[Shot]:
    own = read_results(run, arm).sort_values(["category", "prompt_id", "seed"])
    shots = []
    for _, group in own.groupby("prompt_id", sort=False):
        for number, row in enumerate(group.to_dict("records")):
            shots.append(_shot(run, number, row))
    return shots


def _shot(run: Path, number: int, row: dict[str, Any]) -> Shot:
    path = checked_image(run, row)
    name = str(row["prompt_id"]).partition("-")[2]  # without the split
    return Shot(prompt_id=name, category=row["category"], prompt=row["prompt"], number=number, path=path)


def _compbench(shots: Sequence[Shot]) -> Iterator[tuple[Shot, str]]:
    """``<category>/samples/<prompt>_<running number>.png``; the tool cuts the name at its first underscore."""
    for category, group in groupby(shots, key=lambda shot: shot.category):
        for number, shot in enumerate(group):
            yield shot, f"{_readable(category, '/')}/samples/{_readable(shot.prompt, '_/')}_{number:06d}.png"


def _attend_and_excite(shots: Sequence[Shot]) -> Iterator[tuple[Shot, str]]:
    """``<prompt>/<number>.png``; the tool puts all images into one array, so every prompt has as many."""
    counts = {shot.prompt: sum(each.prompt == shot.prompt for each in shots) for shot in shots}
    if len(set(counts.values())) > 1:
        raise BadSetting("The prompts have different numbers of images.", "Run all of them with the same seeds.")
    for shot in shots:
        yield shot, f"{_readable(shot.prompt, '/')}/{shot.number}.png"


def _geneval(shots: Sequence[Shot]) -> Iterator[tuple[Shot, str]]:
    """``<number of the prompt>/samples/<number>.png``."""
    for shot in shots:
        yield shot, f"{shot.prompt_id}/samples/{shot.number:04d}.png"


def _readable(text: str, forbidden: str) -> str:
    """A prompt or category as part of a path, which must stay in the folder of the export."""
    found = [char for char in f"{forbidden}\\\0" if char in text]
    if found or text != text.strip() or text.startswith(".") or not text:
        raise BadSetting(f"The official tool cannot read {text!r} back from a file name.", "Leave this prompt out.")
    return text


def _metadata(shots: Sequence[Shot], data: str | None) -> dict[str, dict[str, Any]]:
    """What GenEval wants beside the images of each prompt."""
    if data is None:
        raise BadSetting("GenEval wants its metadata beside the images.", "Say where they are: --data FOLDER.")
    known = {each.id: each for each in read_set("geneval", Path(data))}
    found = {}
    for shot in shots:
        each = known.get(shot.prompt_id)
        if each is None or each.prompt != shot.prompt:
            raise BadSetting(f"The prompt {shot.prompt!r} is not one of GenEval's.", "Run the suite geneval first.")
        clauses = {key: value for key, value in each.facts.items() if value}
        found[each.id] = {"tag": each.category, **clauses, "prompt": each.prompt}
    return found
