"""Tables in Markdown, line by line, so that a long measurement shows each row as soon as it is there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from t2ictl.evaluation.statistics.intervals import Bounds

__all__ = ["bounds_text", "markdown_table", "print_table"]


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """Write a table.

    Args:
        head: titles of the columns.
        rows: as many cells each.

    Yields:
        The lines.

    Example:
        >>> print("\\n".join(markdown_table(("arm", "n"), [("plain", 4)])))
        | arm | n |
        |---|---|
        | plain | 4 |
    """
    yield _line(head)
    yield "|---" * len(head) + "|"
    for row in rows:
        yield _line(row)


def _line(cells: Sequence[object]) -> str:
    return "|" + "".join(f" {cell} |" if cell != "" else " |" for cell in cells)


def print_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table, each row when it is made.

    Args:
        head: titles of the columns.
        rows: as many cells each; may be a generator.
    """
    for line in markdown_table(head, rows):
        print(line, flush=True)


def bounds_text(bounds: Bounds, sign: str = "") -> str:
    """Write an estimate with its interval in percent.

    Args:
        bounds: of one column.
        sign: ``"+"`` for differences, which show their sign.

    Returns:
        Such as ``"50.0 [25.4, 74.6]"``.
    """
    value, low, high = (100 * float(each[0]) for each in (bounds.estimate, bounds.low, bounds.high))
    return f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"
