"""Counts that say how dense the library is: `python tools/metrics.py [--check]`.

Statements are `ast.stmt` nodes without docstrings. With --check the exit code is 1 where a limit is passed.
"""
import ast
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "detr_nb"
MODULE_STATEMENTS, ALL_STATEMENTS = 250, 3100
WIDTH, COMFORTABLE_WIDTH, WIDE_SHARE = 120, 100, 0.05
GUARDS = ast.Raise, ast.Return, ast.Continue, ast.Break


def is_docstring(node: ast.stmt, parent: ast.AST) -> bool:
    "Whether a statement is the first string of a module, class or function."
    if not isinstance(parent, (ast.Module, ast.ClassDef, ast.FunctionDef)) or parent.body[0] is not node: return False
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def count_statements(tree: ast.Module) -> int:
    "All statements, nested ones too, without docstrings."
    children = ((parent, child) for parent in ast.walk(tree) for child in ast.iter_child_nodes(parent))
    return sum(isinstance(child, ast.stmt) and not is_docstring(child, parent) for parent, child in children)


def shared_lines(tree: ast.Module) -> list[int]:
    "Lines that hold more than one statement; a guard (`if …: raise …`) may stay on one line."
    lines = []
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            body = getattr(node, name, None)
            if not isinstance(body, list) or not body or not isinstance(body[0], ast.stmt): continue
            guard = isinstance(node, ast.If) and name == "body" and len(body) == 1 and isinstance(body[0], GUARDS)
            if isinstance(node, (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.FunctionDef, ast.ClassDef)):
                header = node.lineno if name == "body" else body[0].lineno - 1
                if name == "body" and isinstance(node, (ast.FunctionDef, ast.ClassDef)): header = body[0].lineno - 1
                if header == body[0].lineno and not guard: lines.append(header)
            lines += [b.lineno for a, b in zip(body, body[1:]) if a.end_lineno == b.lineno]
    return sorted(lines)


def unrelated_assignments(tree: ast.Module) -> list[int]:
    "Lines that assign several values to several names at once (`a, b = 1, 2`)."
    nodes = (n for n in ast.walk(tree) if isinstance(n, ast.Assign) and isinstance(n.value, ast.Tuple))
    return [n.lineno for n in nodes if isinstance(n.targets[0], ast.Tuple)]


def main() -> int:
    "Print the table; with --check compare it with the limits."
    rows, faults = [], []
    for path in sorted(PACKAGE.glob("*.py")):
        if path.name == "_modidx.py": continue
        text = path.read_text(encoding="utf-8")
        tree, widths = ast.parse(text), [len(line) for line in text.splitlines()]
        shared = shared_lines(tree)
        over = sum(width > WIDTH for width in widths)
        wide = sum(width > COMFORTABLE_WIDTH for width in widths)
        tuples = len(unrelated_assignments(tree))
        rows.append((path.stem, count_statements(tree), len(widths), over, wide, len(shared), tuples))
        if rows[-1][1] > MODULE_STATEMENTS: faults.append(f"{path.name}: {rows[-1][1]} statements")
        if over: faults.append(f"{path.name}: {over} lines over {WIDTH} columns")
        if shared: faults.append(f"{path.name}: several statements on the lines {shared[:8]}")
    total = ("total", *(sum(column) for column in list(zip(*rows))[1:]))
    if total[1] > ALL_STATEMENTS: faults.append(f"{total[1]} statements in all: want at most {ALL_STATEMENTS}")
    if total[4] > WIDE_SHARE * total[2]:
        faults.append(f"{total[4]} of {total[2]} lines over {COMFORTABLE_WIDTH} columns")
    names = ("module", "statements", "lines", f"> {WIDTH}", f"> {COMFORTABLE_WIDTH}", "shared", "tuples")
    for row in (names, *rows, total): print(f"{row[0]:<18}" + "".join(f"{value:>11}" for value in row[1:]))
    if "--check" not in sys.argv: return 0
    for fault in faults: print(fault, file=sys.stderr)
    return int(bool(faults))


if __name__ == "__main__":
    raise SystemExit(main())
