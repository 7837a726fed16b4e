"""The folder of a run: rows that survive a kill, images that are complete or absent, and locks.

Rows are appended, a whole unit in one write, and each worker has a file of its own. What a killed
write left behind is an incomplete block at the end of one file; it is not read, and its worker cuts it off.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from t2ictl import Generation
from t2ictl.benchmarks.extras import need
from t2ictl.errors import BadSetting
from t2ictl.settings.store import Line, Store

__all__ = ["Block", "Folder", "Key", "pixel_hash"]

Key = tuple[str, str, int]  # arm, prompt id, seed
PARTS = ("rows", "images", "timings")
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Block:
    """All rows of one unit, as they were written.

    Args:
        unit: number of the unit.
        rows: its rows.
        end: where the block ends in its file (bytes).
    """

    unit: int
    rows: tuple[Row, ...]
    end: int

    @property
    def has_failed(self) -> bool:
        """Whether a row of it is an error."""
        return any(row["status"] != "ok" for row in self.rows)


def pixel_hash(image: Image.Image) -> str:
    """Hash what an image shows, whatever file it is in.

    Args:
        image: the image.

    Returns:
        SHA-256 of mode, size and pixels.

    Example:
        >>> pixel_hash(Image.new("RGB", (2, 2)))[:8]
        'b1215912'
    """
    return hashlib.sha256(f"{image.mode} {image.size}".encode() + image.tobytes()).hexdigest()


@dataclass(frozen=True)
class Folder:
    """The folder of a run.

    Args:
        root: where it is.
    """

    root: Path

    @property
    def store(self) -> Store:
        """Its rows, times and images."""
        return Store(self.root)

    @property
    def plan(self) -> Path:
        """The file that says what the run is."""
        return self.root / "plan.json"

    @property
    def results(self) -> Path:
        """The merged table."""
        return self.root / "results.parquet"

    def prepare(self) -> None:
        """Make the folder.

        Raises:
            BadSetting: if it cannot be made, or holds something else than a run.
        """
        try:
            (self.root / "locks").mkdir(parents=True, exist_ok=True)
            # Another shard may be making the very same folder: empty parts of a run are no other thing's, nor is a plan
            # that a killed process did not write to its end.
            made = {path for path in self.root.iterdir() if path.name != "locks" and path.suffix != ".part"}
            others = {path for path in made if path.name not in PARTS or any(path.iterdir())}
            if others and not self.plan.exists():
                raise BadSetting(f"The folder {str(self.root)!r} holds something else.", "Use a new or empty --out.")
            for name in PARTS:
                (self.root / name).mkdir(exist_ok=True)
        except OSError as error:
            raise BadSetting(
                f"The folder {str(self.root)!r} cannot be made: {error}.", "Choose another --out."
            ) from None

    def lock(self, name: str, *, wait: bool) -> AbstractContextManager[Any]:
        """Take a lock that ends with the process, however that ends.

        Args:
            name: of what.
            wait: wait for another process to be done, or refuse at once.

        Returns:
            A context that holds it.

        Raises:
            BadSetting: if another process has it and ``wait`` is False.
        """
        filelock = need("filelock")
        lock = filelock.FileLock(str(self.root / "locks" / f"{name}.lock"))
        try:
            held: AbstractContextManager[Any] = lock.acquire(timeout=-1 if wait else 0)
            return held
        except filelock.Timeout:
            raise BadSetting(
                f"Another process is at work on shard {name.replace('of', '/')} of {str(self.root)!r}.",
                "Wait for it, or give each process a shard of its own: --shard 1/2, --shard 2/2.",
            ) from None

    # -- rows -------------------------------------------------------------------------------

    def append(self, worker: str, unit: int, rows: Sequence[Row]) -> None:
        """Write the rows of a unit in one piece, and wait until they are on the disk.

        Args:
            worker: name of the worker's file.
            unit: number of the unit.
            rows: all its rows.
        """
        self.store.append(f"rows/{worker}", [{"unit": unit, **row} for row in rows])

    def cut(self, worker: str, expected: Mapping[int, frozenset[Key]]) -> None:
        """Cut off what a killed process left at the end of its file.

        Args:
            worker: name of the worker's file.
            expected: keys of the rows of each unit.
        """
        name = f"rows/{worker}"
        blocks = _blocks(self.store.lines(name), expected)
        self.store.cut(name, end=blocks[-1].end if blocks else 0)

    def blocks(self, expected: Mapping[int, frozenset[Key]]) -> dict[int, Block]:
        """Read the rows of all workers.

        Args:
            expected: keys of the rows of each unit.

        Returns:
            The block of each unit that is complete: the last one of a file, and one without errors before others.
        """
        found: dict[int, Block] = {}
        for path in sorted((self.root / "rows").glob("*.jsonl")):
            last = {block.unit: block for block in _blocks(self.store.lines(f"rows/{path.stem}"), expected)}
            for unit, block in last.items():
                if unit not in found or found[unit].has_failed:
                    found[unit] = block
        return found

    def add_timing(self, worker: str, record: Mapping[str, Any]) -> None:
        """Append one record of time and memory, which must not be in rows: it differs from run to run.

        Args:
            worker: name of the worker's file.
            record: JSON data.
        """
        self.store.append(f"timings/{worker}", [record], sync=False)

    # -- images -----------------------------------------------------------------------------

    def save_image(self, made: Generation, row: Row) -> dict[str, str]:
        """Write an image with its settings inside; the file is complete or absent.

        Args:
            made: the image; its settings hold no time, host or batch.
            row: its row: arm, prompt id and seed name the file.

        Returns:
            The fields ``image``, ``sha256`` (of the pixels) and ``file_sha256`` of the row.
        """
        path = self.store.image_path(f"images/{row['arm'].replace(':', '@')}/{row['prompt_id']}-{row['seed']}")
        path.parent.mkdir(exist_ok=True)
        made.save(path)
        inside = path.relative_to(self.root).as_posix()
        return {"image": inside, "sha256": pixel_hash(made.image), "file_sha256": _file_hash(path)}

    def has_images(self, block: Block) -> bool:
        """Return whether every image of a unit is there as it was written.

        Args:
            block: rows of the unit.

        Returns:
            False if a file is missing, cut short or changed.
        """
        named = [(self.root / row["image"], row["file_sha256"]) for row in block.rows if row["status"] == "ok"]
        return all(path.is_file() and _file_hash(path) == known for path, known in named)


def _file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _blocks(lines: Iterable[Line], expected: Mapping[int, frozenset[Key]]) -> list[Block]:
    """Find the complete blocks: lines of one unit, one after the other, one for each of its keys."""
    found: list[Block] = []
    rows: list[Row] = []
    unit = -1
    for line in lines:
        row = line.row or {}
        number = row.pop("unit", -1)
        if number != unit:
            unit, rows = number, []
        rows.append(row)
        if len(rows) == len(expected.get(unit, ())) and _keys(rows) == expected[unit]:
            found.append(Block(unit=unit, rows=tuple(rows), end=line.end))
            unit, rows = -1, []
    return found


def _keys(rows: Iterable[Row]) -> frozenset[Key]:
    return frozenset((row.get("arm", ""), row.get("prompt_id", ""), row.get("seed", -1)) for row in rows)
