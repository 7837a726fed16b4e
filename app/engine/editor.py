"""The editor without its pages: one for all browser sessions of a server, and the one owner of models and results."""

from __future__ import annotations

import tempfile
import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from t2ictl import Checkpointing
from t2ictl.app.engine.details import Details
from t2ictl.app.engine.jobs import Job, JobRunner, Work
from t2ictl.app.engine.memory import Estimate, MemoryReport, ModelFacts, estimate, facts_of, report
from t2ictl.app.engine.models import FoundModel, ModelManager
from t2ictl.app.engine.reading import PromptReader, ReadPrompt
from t2ictl.app.engine.store import Result, ResultStore
from t2ictl.app.engine.work import JobRequest, Worker

__all__ = ["Editor", "SessionHandle"]

#: Details that are kept in memory; a page reads those of two images at every click.
DETAILS_KEPT = 4
#: Results of a session without a tab that nobody has opened for this long are removed (seconds).
FORGOTTEN = 24 * 3600.0
#: How long a session outlives its last tab (seconds).
GRACE = 120.0


class Editor:
    """Jobs, models, prompts and results for all sessions.

    Args:
        roots: folders below which models may lie.
        folder: where results are kept; None for a temporary folder.
        device: of torch; None for CUDA where there is one.
        dtype: precision of the weights.
        checkpointing: less memory for more work, as in :func:`t2ictl.controlled`.
        grace: how long a session outlives its last tab (seconds): one that is loaded again leaves before it enters.
        work: does a job, instead of the real worker; for tests.
    """

    def __init__(
        self,
        roots: Sequence[Path] = (),
        *,
        folder: Path | None = None,
        device: str | None = None,
        dtype: str = "float32",
        checkpointing: Checkpointing = "off",
        grace: float = GRACE,
        work: Work | None = None,
    ) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="t2ictl-editor-") if folder is None else None
        self.store = ResultStore(Path(self._temporary.name) if self._temporary else folder or Path())
        self.models = ModelManager(roots, device, dtype)
        self._checkpointing: Checkpointing = checkpointing
        self._worker = work or Worker(self.models, self.store, checkpointing)
        self.runner = JobRunner(self._worker)
        self._lock = threading.Lock()
        self._readers: dict[str, PromptReader] = {}
        self._facts: dict[Path, ModelFacts] = {}
        self._tabs: Counter[str] = Counter()
        self._grace = grace
        #: What the page of each session holds, so that a tab that is loaded again finds it.
        self.pages: dict[str, Any] = {}
        self._details: OrderedDict[Path, Details] = OrderedDict()

    def submit(self, session: str, wanted: JobRequest) -> Job:
        """Put a job in the queue.

        Args:
            session: who asks.
            wanted: for what.

        Returns:
            The job.

        Raises:
            BadSetting: if the model may not be used, too many jobs wait already, or there is no room for a result.
        """
        self.models.check(wanted.model)
        self.store.require_room(session)
        with self._lock:
            opened = {name for name, tabs in self._tabs.items() if tabs > 0}
        for gone in self.store.sweep(FORGOTTEN, keep={session, *opened}):
            self.runner.drop(gone)
        return self.runner.submit(session, wanted)

    def read(self, model: str, text: str) -> ReadPrompt:
        """Read a prompt as a model does.

        Args:
            model: source of a found model.
            text: the prompt.

        Returns:
            Its words, objects and tokens.

        Raises:
            BadSetting: if the model or its tokenizer cannot be used.
        """
        with self._lock:
            if model not in self._readers:
                self._readers[model] = PromptReader(self.models.check(model).folder)
            reader = self._readers[model]
        return reader.read(text)

    def found(self) -> list[FoundModel]:
        """List the models that there are."""
        return self.models.models()

    def memory(self) -> MemoryReport:
        """Report the memory of the device."""
        return report(self.models.device, self.models.dtype if self.models.loaded else "")

    def estimate(self, wanted: JobRequest, words: int) -> Estimate:
        """Estimate the memory that a job takes.

        Args:
            wanted: what is asked for.
            words: words of its prompt.

        Returns:
            The estimate.

        Raises:
            BadSetting: if the model does not say how large it is.
        """
        folder = self.models.check(wanted.model).folder
        if folder not in self._facts:  # a page asks at every click, and the files are large
            self._facts[folder] = facts_of(folder)
        facts = self._facts[folder]
        moves = any(control.has_losses for control in wanted.controls)
        return estimate(
            facts,
            wanted.request,
            moves=moves,
            guided=wanted.request.guidance_scale > 1,
            words=words,
            bytes_each=4 if self.models.dtype == "float32" else 2,
            checkpointing=self._checkpointing,
        )

    def details(self, result: Result) -> Details:
        """Read maps and losses of a result.

        Args:
            result: of the store.

        Returns:
            Its details.

        Raises:
            NotRecorded: if they cannot be read.
        """
        with self._lock:
            if result.details not in self._details:
                try:
                    content = result.details.read_bytes()
                except OSError:
                    content = b""  # removed in the meantime; what cannot be read says so
                self._details[result.details] = Details.from_bytes(content)
                while len(self._details) > DETAILS_KEPT:
                    self._details.popitem(last=False)
            self._details.move_to_end(result.details)
            return self._details[result.details]

    def enter(self, session: str) -> None:
        """A browser tab has opened a session, or opened it again.

        Args:
            session: its name.
        """
        with self._lock:
            self._tabs[session] += 1

    def leave(self, session: str) -> None:
        """A tab is gone; a while after a session's last one its jobs end and its results are removed.

        Args:
            session: its name.
        """
        with self._lock:
            self._tabs[session] -= 1
        if not self._grace:
            self._forget(session)
            return
        later = threading.Timer(self._grace, self._forget, [session])
        later.daemon = True
        later.start()

    def _forget(self, session: str) -> None:
        with self._lock:
            if self._tabs[session] > 0:
                return  # it was opened again in the meantime
            del self._tabs[session]
            self.pages.pop(session, None)
        self.runner.drop(session)
        self.store.drop(session)

    def close(self) -> None:
        """End everything."""
        self.runner.close()
        if self._temporary:
            self._temporary.cleanup()


class SessionHandle:
    """A browser tab's hold on its session of the editor; it is released when the tab has been gone for a while.

    Args:
        editor: shared by all.
        session: its name.
    """

    def __init__(self, editor: Editor, session: str) -> None:
        self.editor = editor
        self.session = session
        editor.enter(session)

    def leave(self) -> None:
        """Release the session."""
        self.editor.leave(self.session)
