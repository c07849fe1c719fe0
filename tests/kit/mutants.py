"""Planted faults: changes one place of a module at a time and says which of them the tests do not see.

`python -m tests.kit.mutants 1 gateway/auth.py tests/gateway/test_auth.py …` from the root of a copy of the checkout:
the module is written over while it runs, and put back at the end. The number says to try each nth change only. What
the last runs found stands in `MUTANTS.md`.
"""

import ast
import copy
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SECONDS = 60
SWAPS: dict[type, type] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
}


def changes(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """What a node can be changed to, and how to call it."""
    match node:
        case ast.Compare(ops=[op, *_]) | ast.BoolOp(op=op) | ast.BinOp(op=op) if type(op) in SWAPS:
            other = copy.deepcopy(node)
            swapped = SWAPS[type(op)]()
            setattr(other, "ops" if isinstance(node, ast.Compare) else "op", swapped)
            if isinstance(other, ast.Compare):
                other.ops = [swapped, *node.ops[1:]]  # type: ignore[attr-defined]
            yield other, f"{type(op).__name__} → {type(swapped).__name__}"
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield operand, "without not"
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value), f"{value} → {not value}"
        case ast.Constant(value=int(value)):
            yield ast.Constant(value + 1), f"{value} → {value + 1}"
        case ast.Constant(value=str(value)):
            yield ast.Constant(value + "x"), f"{value[:40]!r} + 'x'"
        case ast.If(test=test) | ast.IfExp(test=test):
            for verdict in (True, False):
                other = copy.deepcopy(node)
                other.test = ast.Constant(verdict)
                yield other, f"if {ast.unparse(test)[:60]} → {verdict}"
        case ast.Return(value=value) if value is not None and ast.unparse(value) != "None":
            yield ast.Return(ast.Constant(None)), f"return {ast.unparse(value)[:60]} → None"
        case _:
            pass


def places(tree: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    """Parent, field, index and node of everything that runs: no docstring, annotation, import or option of a class."""
    if isinstance(tree, (ast.Import, ast.ImportFrom)):
        return
    if isinstance(tree, ast.Subscript) and ast.unparse(tree.value) == "Literal":
        return
    for field, value in ast.iter_fields(tree):
        if field in ("annotation", "returns", "decorator_list", "keywords") and not isinstance(tree, ast.Call):
            continue
        for index, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(node, ast.AST) and not (isinstance(tree, ast.Expr) and isinstance(node, ast.Constant)):
                yield tree, field, index, node
                yield from places(node)


def main(nth: str, module: str, *tests: str) -> None:
    path = Path(module)
    source = path.read_text("utf-8")
    tree = ast.parse(source)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--no-header", *tests]
    everything = [(place, change) for place in places(tree) for change in changes(place[-1])]
    chosen, survived = everything[:: int(nth)], 0
    try:
        for (parent, field, index, node), (other, name) in chosen:
            ast.copy_location(other, node)
            _put(parent, field, index, other)
            path.write_text(ast.unparse(ast.fix_missing_locations(tree)), "utf-8")
            _put(parent, field, index, node)
            try:
                done = subprocess.run(command, capture_output=True, timeout=SECONDS, env=os.environ, check=False)
            except subprocess.TimeoutExpired:
                continue
            if done.returncode == 0:
                survived += 1
                print(f"{module}:{getattr(node, 'lineno', 0)}: {name}", flush=True)
    finally:
        path.write_text(source, "utf-8")
    print(f"{module}: {len(everything)} changes, {len(chosen)} tried, {survived} not seen")


def _put(parent: ast.AST, field: str, index: int | None, node: ast.AST) -> None:
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


if __name__ == "__main__":
    main(*sys.argv[1:])
