"""Results on disk: what a session made, bounded, and gone when the session is.

Pages keep the numbers of results, never pictures: a page's state outlives its tab, and memory with it.
"""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from t2ictl import Generation
from t2ictl.errors import BadSetting

__all__ = ["Result", "ResultStore"]

THUMBNAIL = 128  # pixels of the longer side
_SESSION = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, kw_only=True)
class Result:
    """One picture of a session.

    Args:
        number: counts up within the store.
        prompt: what it was asked for.
        path: the PNG file, with its settings inside.
        thumbnail: a small JPEG file.
        size: bytes of both.
        is_pinned: whether it stays when room is made.
    """

    number: int
    prompt: str
    path: Path
    thumbnail: Path
    size: int
    is_pinned: bool = False


class ResultStore:
    """Folders of results, one a session.

    Room is made by the oldest results of the same session that are not pinned; one session never takes another's.

    Args:
        root: the folder; made if it is not there.
        most: results of a session.
        most_bytes: bytes of a session's files.
        clock: gives seconds; for tests.
    """

    def __init__(
        self, root: Path, *, most: int = 50, most_bytes: int = 200_000_000, clock: Callable[[], float] = time.time
    ) -> None:
        self._root, self._most, self._most_bytes, self._clock = root, most, most_bytes, clock
        self._lock = threading.Lock()
        self._results: dict[str, dict[int, Result]] = {}
        self._seen: dict[str, float] = {}
        self._last = 0
        root.mkdir(parents=True, exist_ok=True)

    def add(self, session: str, made: Generation, prompt: str) -> Result:
        """Keep a picture.

        Args:
            session: whose it is.
            made: the picture with its settings.
            prompt: what it was asked for.

        Returns:
            The result.

        Raises:
            BadSetting: if every kept result is pinned and there is no room, or the session's name is not one of ours.
        """
        folder = self._folder(session)
        with self._lock:
            own = self._results.setdefault(session, {})
            self._seen[session] = self._clock()
            self._last += 1
            number = self._last
            folder.mkdir(exist_ok=True)
            path, small = folder / f"{number}.png", folder / f"{number}.jpg"
            made.save(path)
            thumbnail = made.image.convert("RGB")
            thumbnail.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
            thumbnail.save(small, quality=85)
            size = path.stat().st_size + small.stat().st_size
            own[number] = Result(number=number, prompt=prompt, path=path, thumbnail=small, size=size)
            self._make_room(session, number)
            return own[number]

    def results(self, session: str) -> list[Result]:
        """List what a session has, the newest first.

        Args:
            session: whose.

        Returns:
            Its results.
        """
        with self._lock:
            if session in self._seen:
                self._seen[session] = self._clock()
            return sorted(self._results.get(session, {}).values(), key=lambda each: -each.number)

    def find(self, session: str, number: int) -> Result:
        """Find one result.

        Args:
            session: whose.
            number: its number.

        Returns:
            The result.

        Raises:
            BadSetting: if the session has none of that number.
        """
        with self._lock:
            return self._own(session, number)

    def pin(self, session: str, number: int, is_pinned: bool = True) -> Result:
        """Keep a result when room is made, or let it go again.

        Args:
            session: whose.
            number: its number.
            is_pinned: keep it, or not.

        Returns:
            The result as it is now.

        Raises:
            BadSetting: if the session has none of that number.
        """
        with self._lock:
            changed = replace(self._own(session, number), is_pinned=is_pinned)
            self._results[session][number] = changed
            return changed

    def delete(self, session: str, number: int) -> None:
        """Remove a result and its files; nothing happens if it is gone already.

        Args:
            session: whose.
            number: its number.
        """
        with self._lock:
            self._remove(session, number)

    def drop(self, session: str) -> None:
        """Remove everything of a session that is gone.

        Args:
            session: whose.
        """
        folder = self._folder(session)
        with self._lock:
            self._drop(session, folder)

    def sweep(self, seconds: float) -> list[str]:
        """Remove sessions that nobody has looked at for a while, and folders that an earlier run left behind.

        Args:
            seconds: how long.

        Returns:
            The names of the sessions that were removed.
        """
        now = self._clock()
        with self._lock:
            known = {name for name, seen in self._seen.items() if now - seen < seconds}
            left = {
                path.name
                for path in self._root.iterdir()
                if path.is_dir()
                and _SESSION.fullmatch(path.name)
                and path.name not in self._seen
                and now - path.stat().st_mtime >= seconds
            }
            gone = sorted(left | (set(self._seen) - known))
            for name in gone:  # under the same lock: nobody can come back in between
                self._drop(name, self._root / name)
        return gone

    def _drop(self, session: str, folder: Path) -> None:
        self._results.pop(session, None)
        self._seen.pop(session, None)
        shutil.rmtree(folder, ignore_errors=True)

    def _folder(self, session: str) -> Path:
        if not _SESSION.fullmatch(session):
            raise BadSetting(f"There is no session {session!r}.", "Open the page again.")
        return self._root / session

    def _own(self, session: str, number: int) -> Result:
        found = self._results.get(session, {}).get(number)
        if found is None:
            raise BadSetting(f"Result {number} is not there any more.", "Generate it again from its settings.")
        return found

    def _make_room(self, session: str, newest: int) -> None:
        own = self._results[session]

        def is_full() -> bool:
            return len(own) > self._most or sum(each.size for each in own.values()) > self._most_bytes

        for number in sorted(own):
            if not is_full():
                return
            if number != newest and not own[number].is_pinned:
                self._remove(session, number)
        if is_full() and len(own) > 1:
            self._remove(session, newest)
            raise BadSetting("There is no room: all older pictures are pinned.", "Unpin or delete some of them.")

    def _remove(self, session: str, number: int) -> None:
        found = self._results.get(session, {}).pop(number, None)
        if found is not None:
            found.path.unlink(missing_ok=True)
            found.thumbnail.unlink(missing_ok=True)
