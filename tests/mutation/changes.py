"""Small changes of Python source, each of which some test should notice.

A change replaces the text of one node of the syntax tree; everything else in the file stays as it is, comments
included, so that line numbers mean the same before and after.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

_COMPARED: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_COMBINED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}


@dataclass(frozen=True, kw_only=True)
class Change:
    """One change of a file.

    Args:
        owner: class and function that it is in.
        kind: what is changed.
        line: number of its first line.
        start: where the replaced text begins (characters of the file).
        end: where it ends.
        before: the replaced text.
        after: what takes its place.
        key: the same in every run, as long as the file is the same.
    """

    owner: str
    kind: str
    line: int
    start: int
    end: int
    before: str
    after: str
    key: str

    def apply(self, source: str) -> str:
        """Return the changed file."""
        return source[: self.start] + self.after + source[self.end :]


def changes_of(source: str) -> list[Change]:
    """List all changes of a file.

    Args:
        source: its text.

    Returns:
        The changes in the order of the file.

    Example:
        >>> [change.after for change in changes_of("def f(x):\\n    return x < 3\\n")]
        ['return None', '(x <= 3)', '(x >= 3)', '4']
    """
    starts, total = [0], 0
    for text in source.splitlines(keepends=True):
        total += len(text)
        starts.append(total)
    lines = source.splitlines()
    version = hashlib.sha256(source.encode()).hexdigest()[:8]

    def place(line: int, column: int) -> int:
        return starts[line - 1] + len(lines[line - 1].encode()[:column].decode())

    found = []
    for owner, node, kind, after in _found(ast.parse(source), ""):
        start, end = place(node.lineno, node.col_offset), place(node.end_lineno or 0, node.end_col_offset or 0)
        key = f"{version} {node.lineno}:{node.col_offset} {kind} {after}"
        found.append(
            Change(
                owner=owner,
                kind=kind,
                line=node.lineno,
                start=start,
                end=end,
                before=source[start:end],
                after=after,
                key=key,
            )
        )
    return sorted(found, key=lambda each: (each.start, -each.end))


Found = tuple[str, ast.expr | ast.stmt, str, str]


def _found(tree: ast.AST, owner: str) -> Iterator[Found]:
    """All nodes that may be changed; of types, decorators, messages of errors and docstrings none."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inside = f"{owner}.{child.name}" if owner else child.name
            if not isinstance(child, ast.ClassDef):
                for default in (*child.args.defaults, *(each for each in child.args.kw_defaults if each)):
                    yield from _changed(default, inside)
            for part in child.body:
                yield from _changed(part, inside)
        elif isinstance(child, ast.keyword) and child.arg == "strict":
            continue  # of zip: a guard against mistakes of ours, which no test can make
        elif isinstance(
            child, ast.stmt | ast.expr | ast.comprehension | ast.keyword | ast.withitem | ast.excepthandler
        ):
            yield from _changed(child, owner)


def _changed(node: ast.AST, owner: str) -> Iterator[Found]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield from _found(ast.Module(body=[node], type_ignores=[]), owner)
    elif isinstance(node, ast.Raise):
        yield owner, node, "statement", "pass"
    elif isinstance(node, ast.AnnAssign):
        if node.value is not None:
            yield from _changed(node.value, owner)
    elif not isinstance(node, ast.Import | ast.ImportFrom):
        if isinstance(node, ast.expr):
            yield from ((owner, node, kind, after) for kind, after in _expressions(node))
        elif isinstance(node, ast.stmt):
            yield from ((owner, node, kind, after) for kind, after in _statements(node))
        if isinstance(node, ast.If | ast.While | ast.IfExp) and not _is_flipped_by_itself(node.test):
            yield owner, node.test, "condition", f"(not ({ast.unparse(node.test)}))"
        yield from _found(node, owner)


def _is_flipped_by_itself(test: ast.expr) -> bool:
    return isinstance(test, ast.UnaryOp) or (isinstance(test, ast.Compare) and len(test.ops) == 1)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str | bytes))


def _statements(node: ast.stmt) -> Iterator[tuple[str, str]]:
    """Leave a statement out, where what follows can go on without it."""
    if isinstance(node, ast.Return) and node.value is not None and ast.unparse(node.value) != "None":
        yield "return", "return None"
    elif isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant | ast.Yield | ast.YieldFrom):
        yield "statement", "pass"
    elif isinstance(node, ast.Assign) and all(isinstance(each, ast.Attribute | ast.Subscript) for each in node.targets):
        yield "statement", "pass"
    elif isinstance(node, ast.AugAssign):
        yield "statement", "pass"
        if type(node.op) in _COMBINED:
            other = ast.AugAssign(target=node.target, op=_COMBINED[type(node.op)](), value=node.value)
            yield "arithmetic", ast.unparse(other)


def _expressions(node: ast.expr) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        for other in _COMPARED[type(node.ops[0])]:
            made: ast.expr = ast.Compare(left=node.left, ops=[other()], comparators=node.comparators)
            yield "comparison", f"({ast.unparse(made)})"
    elif isinstance(node, ast.BoolOp):
        opposite = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield "boolean", f"({ast.unparse(ast.BoolOp(op=opposite, values=node.values))})"
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub | ast.Invert):
        yield "boolean" if isinstance(node.op, ast.Not) else "arithmetic", f"({ast.unparse(node.operand)})"
    elif (
        isinstance(node, ast.BinOp) and type(node.op) in _COMBINED and not (_is_text(node.left) or _is_text(node.right))
    ):
        made = ast.BinOp(left=node.left, op=_COMBINED[type(node.op)](), right=node.right)
        yield "arithmetic", f"({ast.unparse(made)})"
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
        flipped = not node.value if isinstance(node.value, bool) else node.value + 1
        yield "constant", repr(flipped)
