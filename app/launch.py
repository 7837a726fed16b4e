"""How the editor is started, and what it is given: options travel to the page's process by environment variables."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from t2ictl import Checkpointing
from t2ictl.app.engine.editor import Editor
from t2ictl.app.settings import LARGEST_UPLOAD
from t2ictl.errors import BadSetting, MissingExtra

__all__ = ["OPTIONS", "new_editor", "serve"]

OPTIONS = "T2ICTL_EDITOR"


def new_editor() -> Editor:
    """Make the editor with the options that the command was given."""
    given: dict[str, Any] = json.loads(os.environ.get(OPTIONS, "{}"))
    roots = [Path(root) for root in given.get("models", ())]
    more = {name: given[name] for name in ("device", "dtype", "checkpointing", "grace") if name in given}
    return Editor(roots, **more)


def serve(
    port: int,
    models: Sequence[Path],
    device: str | None = None,
    dtype: str = "float32",
    checkpointing: Checkpointing = "off",
    *,
    is_headless: bool,
) -> int:
    """Serve the editor until it is interrupted.

    Args:
        port: to listen on, on this machine only.
        models: folders below which models may lie.
        device: of torch; None for CUDA where there is one.
        dtype: precision of the weights.
        checkpointing: less memory for more work, as in :func:`t2ictl.controlled`.
        is_headless: whether no browser window is opened.

    Returns:
        Exit status.

    Raises:
        BadSetting: if a folder is not there, or the port is taken.
        MissingExtra: if Streamlit is not installed.
    """
    for root in models:
        if not root.is_dir():
            raise BadSetting(f"There is no folder {str(root)!r}.", "Give the folder that holds your diffusers folders.")
    _check_port(port)
    try:
        from streamlit.web import cli
    except ImportError:
        raise MissingExtra("The editor needs Streamlit.", "pip install 't2ictl[app]'") from None
    given = json.loads(os.environ.get(OPTIONS, "{}"))
    given |= {"models": [str(root.resolve()) for root in models]}
    given |= {"device": device, "dtype": dtype, "checkpointing": checkpointing}
    os.environ[OPTIONS] = json.dumps(given)
    arguments = [f"--{name}={value}" for name, value in _streamlit_options(port, is_headless=is_headless).items()]
    page = Path(__file__).with_name("streamlit_app.py")
    cli.main(["run", str(page), *arguments], prog_name="t2ictl app", standalone_mode=False)
    return 0


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise BadSetting(f"The port {port} cannot be used: {error}.", "Give another one with --port.") from None


def _streamlit_options(port: int, *, is_headless: bool) -> dict[str, Any]:
    """Streamlit's own options: this machine only, nothing told to anybody, nothing fetched."""
    return {
        "server.address": "localhost",
        "server.port": port,
        "server.headless": str(is_headless).lower(),
        "server.showEmailPrompt": "false",
        # A whole collection after every rerun takes longer than a step of the worker, which waits for it.
        "runner.postScriptGC": "false",
        "server.fileWatcherType": "none",
        "server.maxUploadSize": LARGEST_UPLOAD,
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",
        "theme.light.primaryColor": "#2a6f97",
        "theme.dark.primaryColor": "#4a9bc7",
    }
