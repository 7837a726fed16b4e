"""Results on disk: what a session made, bounded, and gone when the session is.

Pages keep the numbers of results, never images: a page's state outlives its tab, and memory with it.
"""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from t2ictl import Generation
from t2ictl.errors import BadSetting

__all__ = ["Result", "ResultStore"]

THUMBNAIL = 128  # pixels of the longer side
NO_ROOM = ("There is no room: all older images are pinned.", "Unpin or delete some of them.")
_SESSION = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, kw_only=True)
class Result:
    """One image of a session.

    Args:
        number: counts up within the store.
        prompt: what it was asked for.
        path: the PNG file, with its settings inside.
        thumbnail: a small JPEG file.
        size: bytes of its files.
        details: a file of word maps and losses.
        plain: number of the image of the same seed without controls, if it was made.
        key: what it was made of, for plain images that others are compared with; else empty.
        is_listed: whether the history shows it; a plain image made only to compare with is not listed.
        is_pinned: whether it stays when room is made.
    """

    number: int
    prompt: str
    path: Path
    thumbnail: Path
    size: int
    details: Path
    plain: int | None = None
    key: str = ""
    is_listed: bool = True
    is_pinned: bool = False

    @property
    def files(self) -> tuple[Path, ...]:
        """All its files."""
        return self.path, self.thumbnail, self.details


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

    def add(
        self,
        session: str,
        made: Generation,
        prompt: str,
        *,
        details: bytes = b"",
        key: str = "",
        is_listed: bool = True,
    ) -> Result:
        """Keep an image.

        Args:
            session: whose it is.
            made: the image with its settings.
            prompt: what it was asked for.
            details: word maps and losses.
            key: what it was made of, if others may be compared with it.
            is_listed: whether the history shows it.

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
            path, small, held = (folder / f"{number}.{ending}" for ending in ("png", "jpg", "npz"))
            made.save(path)
            held.write_bytes(details)
            thumbnail = made.image.convert("RGB")
            thumbnail.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
            thumbnail.save(small, quality=85)
            size = sum(each.stat().st_size for each in (path, small, held))
            own[number] = Result(
                number=number, prompt=prompt, path=path, thumbnail=small, size=size, details=held, key=key,
                is_listed=is_listed,
            )  # fmt: skip
            self._make_room(session, number)
            return own[number]

    def require_room(self, session: str) -> None:
        """Check before an image is made whether it could be kept.

        Args:
            session: whose.

        Raises:
            BadSetting: if all room is taken by pinned images.
        """
        with self._lock:
            pinned = [each for each in self._results.get(session, {}).values() if each.is_pinned]
            if len(pinned) >= self._most or sum(each.size for each in pinned) >= self._most_bytes:
                raise BadSetting(*NO_ROOM)

    def results(self, session: str) -> list[Result]:
        """List what the history of a session shows, the newest first.

        Args:
            session: whose.

        Returns:
            Its results.
        """
        with self._lock:
            if session in self._seen:
                self._seen[session] = self._clock()
            listed = [each for each in self._results.get(session, {}).values() if each.is_listed]
            return sorted(listed, key=lambda each: -each.number)

    def plain(self, session: str, key: str) -> Result | None:
        """Find a plain image that was made already.

        Args:
            session: whose.
            key: what it is made of.

        Returns:
            The newest one, or None.
        """
        with self._lock:
            found = [each for each in self._results.get(session, {}).values() if each.key == key]
            return max(found, key=lambda each: each.number, default=None)

    def compare(self, session: str, number: int, plain: int) -> Result:
        """Set which plain image belongs to a result.

        Args:
            session: whose.
            number: the result.
            plain: number of the plain image.

        Returns:
            The result as it is now.

        Raises:
            BadSetting: if the session has none of that number.
        """
        return self._change(session, number, plain=plain)

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

    def list_it(self, session: str, number: int) -> Result:
        """Show a result in the history from now on.

        Args:
            session: whose.
            number: its number.

        Returns:
            The result as it is now.

        Raises:
            BadSetting: if the session has none of that number.
        """
        return self._change(session, number, is_listed=True)

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
        return self._change(session, number, is_pinned=is_pinned)

    def delete(self, session: str, number: int) -> None:
        """Remove a result and its files; nothing happens if it is gone already.

        Args:
            session: whose.
            number: its number.
        """
        with self._lock:
            self._remove(session, number)
            self._remove_unused(session)

    def drop(self, session: str) -> None:
        """Remove everything of a session that is gone.

        Args:
            session: whose.
        """
        folder = self._folder(session)
        with self._lock:
            self._drop(session, folder)

    def sweep(self, seconds: float, keep: Collection[str] = ()) -> list[str]:
        """Remove sessions that nobody has opened for a while, and folders that an earlier run left behind.

        Args:
            seconds: how long.
            keep: sessions that have a tab, however long it has only been left open.

        Returns:
            The names of the sessions that were removed.
        """
        now = self._clock()
        with self._lock:
            known = {name for name, seen in self._seen.items() if now - seen < seconds or name in keep}
            left = {
                path.name
                for path in self._root.iterdir()
                if path.is_dir()
                and _SESSION.fullmatch(path.name)
                and path.name not in self._seen
                and path.name not in keep
                and now - path.stat().st_mtime >= seconds
            }
            gone = sorted(left | (set(self._seen) - known))
            for name in gone:  # under the same lock: nobody can come back in between
                self._drop(name, self._root / name)
        return gone

    def _change(self, session: str, number: int, **values: Any) -> Result:
        with self._lock:
            changed = replace(self._own(session, number), **values)
            self._results[session][number] = changed
            return changed

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
            listed = sum(each.is_listed for each in own.values())
            return listed > self._most or sum(each.size for each in own.values()) > self._most_bytes

        for number in sorted(own):
            if not is_full():
                return
            if number in own and number != newest and own[number].is_listed and not own[number].is_pinned:
                self._remove(session, number)
                self._remove_unused(session, newest)
        if is_full() and len(own) > 1:
            self._remove(session, newest)
            raise BadSetting(*NO_ROOM)

    def _remove_unused(self, session: str, newest: int = 0) -> None:
        """Plain images that are not listed go with the last one that is compared with them."""
        own = self._results.get(session, {})
        used = {each.plain for each in own.values()}
        for number in [each.number for each in own.values() if not each.is_listed]:
            if number not in used and number != newest:
                self._remove(session, number)

    def _remove(self, session: str, number: int) -> None:
        found = self._results.get(session, {}).pop(number, None)
        if found is not None:
            for path in found.files:
                path.unlink(missing_ok=True)
