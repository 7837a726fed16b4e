"""What the command ``t2ictl flow`` does."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from t2ictl.cli.commands import check_place, open_model, size_of
from t2ictl.errors import BadSetting
from t2ictl.processors.token_flow.analysis.analysis import flow
from t2ictl.processors.token_flow.analysis.page import summary
from t2ictl.processors.token_flow.items import Item
from t2ictl.shapes.embedded import MODELS

__all__ = ["flow_files", "items_of"]


def items_of(names: str, senses: Sequence[str], swaps: Sequence[str]) -> tuple[Item, ...]:
    """Read items from the command line.

    Args:
        names: words or phrases, by commas.
        senses: ``ITEM:OTHER=SEEN``.
        swaps: ``ITEM=WORDS``.

    Returns:
        The items.

    Raises:
        BadSetting: for what is malformed, or is said of no item.

    Example:
        >>> items_of("bat,ball", ["bat:ball=baseball bat"], ["ball=book"])[0].senses
        {'ball': 'baseball bat'}
    """
    found: dict[str, dict[str, Any]] = {name.strip(): {} for name in names.split(",") if name.strip()}
    for option, entries in (("--sense", senses), ("--swap", swaps)):
        for entry in entries:
            path, equals, value = entry.partition("=")
            item, colon, other = path.partition(":")
            if not equals or not value.strip() or bool(colon) != (option == "--sense"):
                form = "ITEM:OTHER=SEEN" if option == "--sense" else "ITEM=WORDS"
                raise BadSetting(f"{option} {entry!r} is not {form}.", "For example --sense bat:ball='baseball bat'.")
            if item.strip() not in found:
                raise BadSetting(f"{option} {entry!r} is of no item.", f"Add it: --items {names or item},...")
            own = found[item.strip()]
            if colon:
                own.setdefault("senses", {})[other.strip()] = value.strip()
            else:
                own["swap"] = value.strip()
    return tuple(Item(words=name, **fields) for name, fields in found.items())


def _judge(judge: str | None, model: str) -> str | None:
    """The judge that is asked for; the embedded models bring their own."""
    if judge is not None:
        return None if judge == "none" else judge
    return "shapes" if model in MODELS else None


def flow_files(
    prompt: str,
    items: Sequence[Item],
    out: Path,
    model: str,
    *,
    judge: str | None,
    device: str | None,
    dtype: str,
    as_json: bool,
    request: dict[str, Any],
    **options: Any,
) -> None:
    """Analyze a prompt and write ``report.html`` and ``report.json``; images are kept, so that it can go on.

    Args:
        prompt: the prompt.
        items: the items; empty for all objects.
        out: the folder.
        model: what to load.
        judge: name of a judge; ``"none"``; None: the exact one for embedded models, and none for others.
        device: where to put the model; None for CUDA where there is one.
        dtype: name of a precision.
        as_json: print the whole result.
        request: seed, steps, size as text, guidance, negative prompt.
        **options: further arguments of :func:`t2ictl.flow`.
    """
    check_place(out)
    if out.is_file():
        raise BadSetting(f"{str(out)!r} is a file.", "Name a folder.")
    width, height = size_of(request.pop("size"))
    chosen = _judge(judge, model)
    pipe = open_model(model, device, dtype)
    with tqdm(desc="images", file=sys.stderr, disable=None) as bar:

        def tell(done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.refresh()

        result = flow(
            pipe,
            prompt,
            items,
            judge=chosen,
            folder=out / "cells",
            on_batch=tell,
            width=width,
            height=height,
            **request,
            **options,
        )
    if judge is None and chosen is None:
        print("No judge: only the screen and the word maps are made (see --judge).", file=sys.stderr)
    page = result.save(out)
    if as_json:
        print(json.dumps(result.to_dict(), indent=2))
        return
    print("\n".join([*summary(result), str(page), str(out / "report.json")]))
