"""Controls, one method a file.

A class is found here by its name, whichever file it lives in: a new method is a new file
and nothing else. For static types, import from the file itself
(``from t2ictl.processors.attention_segregation import AttentionSegregation``).
"""

from __future__ import annotations

from typing import Any

# Beside their control some methods have a verb (``t2ictl.story``) and a command (``t2ictl story``): where these are, so
# that the core names none of them and loads nothing before it is asked for.
VERBS = {"flow": "t2ictl.processors._flow.analysis:flow", "story": "t2ictl.processors._story:story"}
COMMANDS = {
    "flow": "t2ictl.processors._flow.command:flow",
    "story": "t2ictl.processors._story_command:story",
}


def __getattr__(name: str) -> Any:
    if not name.startswith("_"):
        from t2ictl.controls import broken_controls, list_controls

        for control in list_controls().values():
            if control.__name__ == name:
                return control
        broken = "; ".join(f"{module}: {error}" for module, error in broken_controls().items())
        if broken:
            raise AttributeError(f"module 't2ictl.processors' has no control {name!r} (failed to import: {broken})")
    raise AttributeError(f"module 't2ictl.processors' has no control {name!r}")


def __dir__() -> list[str]:
    from t2ictl.controls import list_controls

    return sorted(control.__name__ for control in list_controls().values())
