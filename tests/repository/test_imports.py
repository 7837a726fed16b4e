"""What importing costs and leaves behind; each check in a fresh interpreter."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap

from tests.repository.sources import LINKED, ROOT, installed_modules, sources

HEAVY = ("torch", "diffusers", "transformers", "scipy", "streamlit", "textblob", "matplotlib", "pandas")


def _python(code: str) -> str:
    """Output of ``code`` in a fresh interpreter at the root; its error output is the failure message."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_nothing_heavy() -> None:
    loaded = _python(f"import sys, t2ictl; print([name for name in {HEAVY} if name in sys.modules])")
    assert loaded.strip() == "[]"


def test_help_loads_nothing_heavy() -> None:
    output = _python(f"""
        import sys
        from t2ictl.cli.app import main
        sys.argv = ["t2ictl", "--help"]
        try:
            status = main()
        except SystemExit as stop:
            status = stop.code
        assert not status, f"t2ictl --help ended with status {{status}}"
        print("loaded:", [name for name in {HEAVY} if name in sys.modules])
    """)
    assert output.strip().endswith("loaded: []"), output
    assert "generate" in output


def test_importing_all_modules_leaves_no_trace() -> None:
    """None of the four folders appears under its bare name, and no random number is drawn."""
    output = _python(f"""
        import random, sys
        from importlib import import_module
        import numpy, torch
        before = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()
        for name in {installed_modules()}:
            import_module(name)
        after = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()
        print([name for name in {LINKED} if name in sys.modules])
        print(torch.equal(before[0], after[0]) and before[1:] == after[1:])
    """)
    assert output.strip().splitlines()[-2:] == ["[]", "True"]


def test_a_fresh_process_knows_every_control() -> None:
    """Also those of packages, whose classes nobody has asked for yet."""
    written = re.findall(r'@register_control\(\s*"(\w+)"', "".join(each.text for each in sources("processors")))
    output = _python("import t2ictl; print(sorted(t2ictl.list_controls()))")
    assert len(written) >= 15 and output.strip() == str(sorted(written))
