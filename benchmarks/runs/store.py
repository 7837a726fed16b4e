"""The folder of a run: rows that survive a kill, images that are complete or absent, and locks.

Rows are appended, a whole unit in one write, and each worker has a file of its own. What a killed
write left behind is an incomplete block at the end of one file; it is not read, and its worker cuts it off.
Workers come and go, so two files may hold rows of one unit: those count that say what the images on disk are.
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
from t2ictl.settings.store import Line, Store, file_hash, file_name

__all__ = ["Block", "Contents", "Folder", "Key", "pixel_hash"]

Key = tuple[str, str, int]  # arm, prompt id, seed
PARTS = ("rows", "images", "timings")
Row = dict[str, Any]
_NEEDED = {"unit": int, "arm": str, "category": str, "prompt_id": str, "prompt": str, "seed": int, "status": str}
_NEEDED_IF_OK = {"image": str, "file_sha256": str}


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


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What the folder of a run holds.

    Args:
        blocks: the block of each unit that is complete, and whose images are as its rows say.
        changed: units with complete rows, an image of which is lost or is not the one that the rows describe.
        torn: lines of all files that are damaged, or of a batch that is not complete.
    """

    blocks: dict[int, Block]
    changed: frozenset[int]
    torn: int

    @property
    def note(self) -> str | None:
        """A sentence on what is there besides complete units; None if there is nothing."""
        if not (self.torn or self.changed):
            return None
        return f"Damaged or incomplete rows: {self.torn}; batches with lost or changed images: {len(self.changed)}."


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

    def cut(self, worker: str, expected: Mapping[int, Sequence[Key]]) -> None:
        """Cut off what a killed process left at the end of its file.

        Args:
            worker: name of the worker's file.
            expected: keys of the rows of each unit, in their order.
        """
        name = f"rows/{worker}"
        blocks = _blocks(self.store.lines(name), expected)
        self.store.cut(name, end=blocks[-1].end if blocks else 0)

    def read(self, expected: Mapping[int, Sequence[Key]]) -> Contents:
        """Read the rows of all workers, and compare the images with them.

        Args:
            expected: keys of the rows of each unit, in their order.

        Returns:
            The complete units and what is damaged. Of several blocks of a unit the last one counts whose images are on
            disk as it says, one without errors before others; names of files play no part in it.
        """
        found: dict[int, Block] = {}
        seen: set[int] = set()
        hashes: dict[str, str | None] = {}
        torn = 0
        for path in sorted((self.root / "rows").glob("*.jsonl")):
            lines = list(self.store.lines(f"rows/{path.stem}"))
            blocks = _blocks(lines, expected)
            torn += len(lines) - sum(len(block.rows) for block in blocks)
            torn += path.stat().st_size > (lines[-1].end if lines else 0)
            for block in blocks:
                seen.add(block.unit)
                wins = block.unit not in found or found[block.unit].has_failed or not block.has_failed
                if wins and self._has_images(block, hashes):
                    found[block.unit] = block
        return Contents(blocks=found, changed=frozenset(seen - found.keys()), torn=torn)

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
        arm = "@".join(map(file_name, row["arm"].split(":")))
        path = self.store.image_path(f"images/{arm}/{file_name(row['prompt_id'])}-{row['seed']}")
        path.parent.mkdir(exist_ok=True)
        made.save(path)
        inside = path.relative_to(self.root).as_posix()
        return {"image": inside, "sha256": pixel_hash(made.image), "file_sha256": file_hash(path)}

    def _has_images(self, block: Block, hashes: dict[str, str | None]) -> bool:
        """Whether every image of a unit is there as it was written; ``hashes`` keeps those of files."""
        for row in block.rows:
            if row["status"] == "ok":
                path = self.root / row["image"]
                if row["image"] not in hashes:
                    hashes[row["image"]] = file_hash(path) if path.is_file() else None
                if hashes[row["image"]] != row["file_sha256"]:
                    return False
        return True


def _is_whole(line: Line) -> bool:
    """Whether a line is a row with everything by which rows are told apart and images found."""
    row = line.row or {}
    needed = _NEEDED | (_NEEDED_IF_OK if row.get("status") == "ok" else {})
    return all(isinstance(row.get(key), kind) for key, kind in needed.items())


def _blocks(lines: Iterable[Line], expected: Mapping[int, Sequence[Key]]) -> list[Block]:
    """Find the complete blocks: lines of one unit, one after the other, with its keys in their order."""
    found: list[Block] = []
    rows: list[Row] = []
    unit = -1
    for line in lines:
        row = dict(line.row or {}) if _is_whole(line) else {}
        number = row.pop("unit", -1)
        if number != unit:
            unit, rows = number, []
        # Rows of an attempt that was not finished may come right before those of the one that was.
        wanted = expected.get(unit, ())
        rows = [*rows, row][-len(wanted) :] if wanted else []
        if len(wanted) > 0 and _keys(rows) == list(wanted):
            found.append(Block(unit=unit, rows=tuple(rows), end=line.end))
            unit, rows = -1, []
    return found


def _keys(rows: Iterable[Row]) -> list[Key | None]:
    return [(row["arm"], row["prompt_id"], row["seed"]) if row else None for row in rows]
