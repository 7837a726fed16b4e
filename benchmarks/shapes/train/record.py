"""The recipe of a run on record: its first call fixes it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, TypeVar

from t2ictl.errors import BadSetting

Kind = TypeVar("Kind")


def read_recipe_of(kind: type[Kind], folder: Path, changes: dict[str, Any], free: tuple[str, ...]) -> Kind:
    """Read the recipe of a run, or start one.

    Args:
        kind: a frozen dataclass.
        folder: of the run.
        changes: values given on the command line.
        free: what may change while a run is under way; checkpoints depend on the rest.

    Returns:
        The recipe, which is also written to ``recipe.json``.

    Raises:
        BadSetting: another value differs from the one on record.

    Example:
        >>> import tempfile
        >>> from t2ictl.benchmarks.shapes.train.settings import Recipe
        >>> read_recipe_of(Recipe, Path(tempfile.mkdtemp()), {"batch": 8}, ()).batch
        8
    """
    path = folder / "recipe.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    # As the record has them: a tuple comes back as a list.
    changes = json.loads(json.dumps(changes))
    for name, value in changes.items():
        if name not in free and name in stored and stored[name] != value:
            raise BadSetting(f"{name} of the run in {folder} is {stored[name]}, not {value}.", "Use another --out.")
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in {**stored, **changes}.items()}
    recipe = kind(**fields)
    path.write_text(json.dumps(dataclasses.asdict(recipe), indent=2) + "\n", encoding="utf-8")  # type: ignore[call-overload]
    return recipe
