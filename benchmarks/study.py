"""``t2ictl bench study``: the studies behind published figures, which are in a checkout and not in a wheel."""

from __future__ import annotations

import importlib
from typing import Any

import typer

from t2ictl.errors import MissingExtra

__all__ = ["STUDIES", "app"]

FOLDER = "t2ictl.benchmarks.studies"
#: By the name of a command: the module in the folder whose ``main`` it calls, and what it does.
STUDIES = {
    "stories": ("stories.run", "Tell stories with several arms, and print their tables."),
    "similarity": ("stories.similarity", "Compare the subjects of a story with an image model."),
    "token-flow": ("token_flow.run", "Run the study of token flow on the embedded model."),
    "text-encoders": ("token_flow.encoders", "Measure what words have read of each other in each text encoder."),
    "localisation": ("token_flow.localisation", "Compare how well attention maps point, beside DAAM's."),
    "word-maps": ("word_maps.maps", "Measure how well attention maps point at their objects."),
    "rounding": ("rounding", "Compare images made in batches with the same made alone."),
    "idle": ("idle", "Try every control where it has nothing to do, and print which say so."),
    "families": ("families", "List which controls act on which families of pipelines."),
    "composition": ("composition", "Try every pair of controls, and print which go together."),
}

app = typer.Typer(
    name="study",
    help="Run a study of this project; needs a checkout of the repository.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _add(name: str, module: str, what: str) -> None:
    # The study reads its own arguments, ``--help`` included.
    reads = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

    @app.command(name, help=what, context_settings=reads)
    def study(context: typer.Context) -> None:
        raise typer.Exit(_main(name, module)(list(context.args)))


def _main(name: str, module: str) -> Any:
    try:
        importlib.import_module(FOLDER)
    except ModuleNotFoundError:
        raise MissingExtra(
            f"The study {name!r} is not installed: studies are not part of the wheel.",
            "Run it in a checkout of the repository (pip install -e .).",
        ) from None
    return importlib.import_module(f"{FOLDER}.{module}").main


for _name, (_module, _what) in STUDIES.items():
    _add(_name, _module, _what)
