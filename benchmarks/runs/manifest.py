"""plan.json: everything that reproduces the rows of a folder, and the refusal to mix two of them.

Legend of its keys: the fields of the plan under their own names; ``arms`` with all settings; ``items`` the prompts;
``instrument`` the judge and what it measures with; ``source`` the code that makes images; ``arguments`` what each call
gets beside the fields of the plan, if anything.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import t2ictl
from t2ictl.benchmarks.runs.arms import Arm
from t2ictl.benchmarks.runs.plan import RunPlan
from t2ictl.benchmarks.suites.base import Item, find_suite
from t2ictl.errors import BadSetting
from t2ictl.settings.files import versions

__all__ = ["SCHEMA", "check_same", "limited_note", "make_manifest", "read_manifest", "source_files", "source_hash"]

SCHEMA = 1
_PACKAGES = ("torch", "diffusers", "transformers", "safetensors", "numpy", "pillow", "scipy", "textblob", "pyarrow")
#: Folders of code that does not decide what a row holds: front ends, tables, studies, training recipes.
_NOT_SOURCE = ("app", "cli", *(f"benchmarks/{name}" for name in ("results", "scoring", "shapes", "speed", "studies")))
#: Kept for the record, and no reason to refuse: the same code has many commits.
_NOT_COMPARED = ("commit", "hash")
_NAMED = 3  # differing keys named in a refusal


def make_manifest(plan: RunPlan, arms: Sequence[Arm], items: Sequence[Item], pipe: Any) -> dict[str, Any]:
    """Collect everything that decides the rows.

    Args:
        plan: what was asked for.
        arms: the arms, resolved.
        items: the prompts.
        pipe: the pipeline that will make the images.

    Returns:
        JSON data with a hash of itself.
    """
    scheduler = {key: value for key, value in pipe.scheduler.config.items() if not key.startswith("_")}
    asked = plan.model_dump(mode="json", exclude={"arms", "data"})
    manifest = {
        "schema": SCHEMA,
        "limited": plan.limit is not None,
        **asked,
        "arms": {arm.label: arm.to_dict() for arm in arms},
        "items": [{"id": item.id, "category": item.category, "prompt": item.prompt} for item in items],
        "scheduler": {"class": type(pipe.scheduler).__name__, **scheduler},
        "pipeline": type(pipe).__name__,
        **({"arguments": arguments} if (arguments := t2ictl.own_arguments(pipe)) else {}),
        "device": pipe.device.type,
        "dtype": str((getattr(pipe, "unet", None) or pipe.transformer).dtype).removeprefix("torch."),
        "versions": versions(_PACKAGES),
        "source": source_hash(Path(t2ictl.__file__).parent),
        "instrument": find_suite(plan.suite, plan.data).instrument(plan.model),
        "commit": _commit(),
    }
    manifest["hash"] = _hash(manifest)
    return dict(json.loads(json.dumps(manifest)))  # as a reader will see it: tuples are lists


def _hash(manifest: Mapping[str, Any]) -> str:
    compared = {key: value for key, value in manifest.items() if key not in _NOT_COMPARED}
    return hashlib.sha256(json.dumps(compared, sort_keys=True).encode()).hexdigest()[:16]


def source_files(home: Path) -> list[Path]:
    """List the code that decides what a row holds, in all folders of the package.

    Args:
        home: the folder of the package.

    Returns:
        Its Python files, sorted by their path.
    """
    found = []
    for folder, names, files in os.walk(home, followlinks=True):  # four folders are links
        here = Path(folder).relative_to(home)
        names[:] = [name for name in names if (here / name).as_posix() not in _NOT_SOURCE]
        found += [Path(folder, name) for name in files if name.endswith(".py")]
    return sorted(found, key=lambda path: path.relative_to(home).as_posix())


def source_hash(home: Path) -> str:
    """Hash the code that decides what a row holds, with the names of its files.

    Args:
        home: the folder of the package.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for path in source_files(home):
        digest.update(path.relative_to(home).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _commit() -> str | None:
    """The commit of the checkout that this code lies in, marked if files differ from it; None outside of one."""
    home = Path(t2ictl.__file__).resolve().parent.parent
    if not (home / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            cwd=home,
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a plan.json.

    Args:
        path: the file.

    Returns:
        Its data.

    Raises:
        BadSetting: if it is not there, damaged, or of a newer layout.
    """
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        schema = manifest["schema"]
    except FileNotFoundError:
        raise BadSetting(
            f"{str(path.parent)!r} holds no benchmark run (no plan.json).", "Give the --out of a run."
        ) from (None)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadSetting(f"{str(path)!r} cannot be read: {error}.", "Start again in a new folder.") from None
    if schema != SCHEMA:
        raise BadSetting(f"{str(path)!r} has layout {schema!r}, not {SCHEMA}.", "Use the t2ictl that wrote it.")
    return dict(manifest)


def check_same(old: Mapping[str, Any], new: Mapping[str, Any], folder: Path) -> None:
    """Refuse to add rows of one plan to those of another.

    Args:
        old: what the folder was made with.
        new: what shall be run now.
        folder: the folder.

    Raises:
        BadSetting: naming the keys that differ, and both values.

    Example:
        >>> check_same({"steps": 20, "commit": "a"}, {"steps": 6, "commit": "b"}, Path("run"))
        Traceback (most recent call last):
        t2ictl.errors.BadSetting: The folder 'run' was made with another plan: steps was 20, is 6. ...
    """
    differing = [
        f"{key} was {_short(was)}, is {_short(now)}"
        for key, was, now in _differences(old, new)
        if key not in _NOT_COMPARED
    ]
    if differing:
        more = f" and {len(differing) - _NAMED} more" if len(differing) > _NAMED else ""
        raise BadSetting(
            f"The folder {str(folder)!r} was made with another plan: {'; '.join(differing[:_NAMED])}{more}.",
            "Go on with what it was made with, or use a new --out.",
        )


def _differences(old: Any, new: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _differences(old.get(key), new.get(key), f"{place}.{key}" if place else key)
    elif old != new:
        yield place, old, new


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def limited_note(manifest: Mapping[str, Any]) -> str | None:
    """Return the note on a run that was cut short on purpose.

    Args:
        manifest: data of plan.json.

    Returns:
        A line for tables, or None.

    Example:
        >>> limited_note({"limit": 6})
        'limited run (--limit 6): not a result'
    """
    return f"limited run (--limit {manifest['limit']}): not a result" if manifest["limit"] else None
