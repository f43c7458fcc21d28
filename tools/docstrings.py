"""Docstrings for `help()`: `python tools/docstrings.py detr_nb/*.py` writes into them what a chapter says in comments.

In the chapters the comment behind an argument explains it, and the comment behind `-> Tensor:` explains the result. A
reader of the library sees none of these in `help()`, so every public function, method and class gets them in its
docstring too: `Args:`, `Attributes:`, `Returns:` and `Raises:`, as Google writes them. Only the source is read; nothing
is imported. A docstring that has such blocks already is left as it is.
"""
import ast
import io
import re
import sys
import textwrap
import tokenize
from pathlib import Path
from typing import NamedTuple

WIDTH = 100
BLOCK = re.compile(r"^(?:Args|Attributes|Returns|Raises):$", re.MULTILINE)
ERROR = r"`(?:\w+Error|BadParameter)`"  # what a sentence about an error begins with
ERROR_SENTENCE = re.compile(rf"(?<=[.!?…]\s)({ERROR}.*?\.)(?=\s|$)", re.DOTALL)
CALLS = "forward", "__call__"  # always explained: they are what a user of the object calls


class Argument(NamedTuple):
    "An argument of a function, or a field of a class."
    name: str            # with its stars
    annotation: str      # as it is written; empty where there is none
    default: str | None  # as it is written
    comment: str         # empty where there is none


class Definition(NamedTuple):
    "A public function, method or class."
    name: str                  # with the class before it: "DetrModel.forward"
    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    text: str                  # its docstring; empty where there is none
    arguments: list[Argument]  # without self and cls; of a class those of its `__init__`, or its fields
    heading: str               # of the arguments: "Args" or "Attributes"
    returns: str               # the result's type as it is written; empty for none, and for None
    result: str                # the comment of the result


def comments(source: str) -> dict[int, str]:
    "The comment on each line that has one; remarks to the linter are none."
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    found = {
        t.start[0]: t.string.lstrip("# ").split("# noqa")[0].strip() for t in tokens if t.type == tokenize.COMMENT
    }
    return {line: text for line, text in found.items() if not text.startswith("noqa")}


def is_record(node: ast.ClassDef) -> bool:
    "Whether the fields of a class are the arguments it is made from: a dataclass or a NamedTuple."
    names = [*map(ast.unparse, node.decorator_list), *map(ast.unparse, node.bases)]
    return any(re.match(r"(dataclasses\.)?dataclass\b|(typing\.)?NamedTuple$", name) for name in names)


class Module:
    "The public functions, methods and classes of a module, read from its source."
    def __init__(self, source: str):
        self.data, self.tree, self.notes = source.encode(), ast.parse(source), comments(source)
        self.starts = [0]
        for line in self.data.split(b"\n"): self.starts.append(self.starts[-1] + len(line) + 1)
        self.classes = {n.name: n for n in self.tree.body if isinstance(n, ast.ClassDef)}

    def place(self, node: ast.AST) -> slice:
        "Where a piece of the source lies among its bytes."
        start, end = self.starts[node.lineno - 1], self.starts[node.end_lineno - 1]
        return slice(start + node.col_offset, end + node.end_col_offset)

    def written(self, node: ast.AST | None) -> str:
        "A piece of the source on one line."
        return "" if node is None else " ".join(self.data[self.place(node)].decode().split())

    def argument(self, name: str, node: ast.AST, default: ast.expr | None, without: int = 0) -> Argument:
        "An argument or a field. The comment on line `without` is somebody else's."
        line = (default or node).end_lineno
        comment = self.notes.get(line, "") if line != without else ""
        return Argument(name, self.written(node.annotation), self.written(default) or None, comment)

    def arguments(self, node: ast.FunctionDef) -> list[Argument]:
        """The arguments of a function, in order. Several on one line share its comment; the last
        line's is the result's."""
        a, last = node.args, node.returns.end_lineno if node.returns else 0
        positional = [*a.posonlyargs, *a.args]
        defaults = [None] * (len(positional) - len(a.defaults)) + a.defaults
        found = [(x.arg, x, default) for x, default in zip(positional, defaults)]
        if a.vararg: found.append((f"*{a.vararg.arg}", a.vararg, None))
        found += [(x.arg, x, default) for x, default in zip(a.kwonlyargs, a.kw_defaults)]
        if a.kwarg: found.append((f"**{a.kwarg.arg}", a.kwarg, None))
        return [self.argument(*x, without=last) for x in found if x[0] not in ("self", "cls")]

    def fields(self, node: ast.ClassDef) -> dict[str, Argument]:
        "The fields that a dataclass or NamedTuple adds to those it inherits."
        found = {}
        for n in node.body:
            if not isinstance(n, ast.AnnAssign) or n.target.id.startswith("_"): continue
            if "ClassVar" in self.written(n.annotation): continue
            field = self.argument(n.target.id, n, n.value)
            if isinstance(n.value, ast.Call) and ast.unparse(n.value.func).endswith("field"):
                given = {k.arg: self.written(k.value) for k in n.value.keywords}
                factory = f"{given['default_factory']}()" if "default_factory" in given else None
                field = field._replace(default=given.get("default", factory))
            elif isinstance(n.value, ast.Call) and ast.unparse(n.value.func).startswith(
                "_"
            ):  # a field with a check of its own
                field = field._replace(default=self.written(n.value.args[0]) if n.value.args else None)
            found[field.name] = field
        return found

    def family(self, node: ast.ClassDef) -> list[ast.ClassDef]:
        "A class and those of its module that it inherits from, nearest first."
        found = [node]
        for one in found: found += [self.classes[name] for name in map(ast.unparse, one.bases) if name in self.classes]
        return found

    def class_definition(self, node: ast.ClassDef) -> Definition:
        "A class with what it is made from, where it or a class of its module says so."
        heading, found = "Args", []
        for number, one in enumerate(family := self.family(node)):
            made = next((n for n in one.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
            if made: found = self.arguments(made)
            elif is_record(one):
                records = [c for c in reversed(family[number:]) if is_record(c)]
                heading, found = (
                    "Attributes", list({k: v for c in records for k, v in self.fields(c).items()}.values()),
                )
            if made or is_record(one): break
        return Definition(node.name, node, ast.get_docstring(node) or "", found, heading, "", "")

    def function_definition(self, node: ast.FunctionDef, owner: str = "") -> Definition:
        "A function, or a method of the class `owner`."
        text, returns = ast.get_docstring(node) or "", self.written(node.returns)
        if returns == "None": returns = ""
        result = self.notes.get(node.returns.end_lineno, "") if returns else ""
        return Definition(owner + node.name, node, text, self.arguments(node), "Args", returns, result)

    def methods(self, node: ast.ClassDef) -> list[ast.FunctionDef]:
        "The public methods that a class itself has. What sets or deletes a property is none."
        found = [n for n in node.body if is_function(n) and (n.name in CALLS or not n.name.startswith("_"))]
        return [n for n in found if not decorated(n, "setter", "deleter")]

    def definitions(self) -> list[Definition]:
        """All that is public, in the order of the source. Commands are left out: their docstring is
        their --help."""
        found = []
        for node in self.tree.body:
            if getattr(node, "name", "_").startswith("_"): continue
            if isinstance(node, ast.ClassDef):
                found.append(self.class_definition(node))
                found += [self.function_definition(n, f"{node.name}.") for n in self.methods(node)]
            elif not decorated(node, "command", "callback"): found.append(self.function_definition(node))
        return found


def is_function(node: ast.AST) -> bool:
    "Whether a statement defines a function."
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))


def decorated(node: ast.FunctionDef, *attributes: str) -> bool:
    "Whether an attribute of something decorates a function: `@size.setter`, `@app.command()`."
    called = [d.func if isinstance(d, ast.Call) else d for d in node.decorator_list]
    return any(isinstance(d, ast.Attribute) and d.attr in attributes for d in called)


def filled(text: str, indent: int, first: str = "", rest: str = "") -> list[str]:
    "A paragraph as lines that fit, `indent` columns to the right."
    options = dict(break_long_words=False, break_on_hyphens=False)
    return textwrap.wrap(text, WIDTH - indent, initial_indent=first, subsequent_indent=rest, **options)


def take_errors(text: str) -> tuple[str, list[tuple[str, str]]]:
    """A docstring without its sentences about errors, and each error with when it is raised.

    A docstring that begins with such a sentence stays whole: it is the summary.
    """
    if re.match(ERROR, text): return text, []
    entries = []
    for sentence in ERROR_SENTENCE.findall(text):
        for part in re.split(rf"[,;]\s(?:and\s|or\s)?(?={ERROR})", sentence.rstrip(".")):
            names, when = re.match(rf"((?:{ERROR}(?: or )?)+)(.*)", " ".join(part.split())).groups()
            entries += [(name, f"{when.strip()}.") for name in re.findall(r"`(\w+)`", names)]
    paragraphs = [ERROR_SENTENCE.sub("\0", paragraph) for paragraph in text.split("\n\n")]
    kept = [" ".join(p.replace("\0", " ").split()) if "\0" in p else p for p in paragraphs]
    return "\n\n".join(p for p in kept if p), entries


def explained(argument: Argument) -> tuple[str, str]:
    "The head of an argument's entry, and what follows its colon."
    head = f"{argument.name} ({argument.annotation})" if argument.annotation else argument.name
    comment, default = argument.comment, argument.default
    if default in (None, "None") or re.fullmatch(r"_[A-Z_]+", default):
        return head, comment  # nothing, or a private name
    if comment and comment[-1] not in ".…!?": comment += "."
    return head, f"{comment} Defaults to {default}.".lstrip()


def block(heading: str, entries: list[tuple[str, str]], indent: int) -> list[str]:
    "One block: every entry with a hanging indent."
    lines = ["", f"{heading}:"]
    for head, text in entries:
        if len(head) < WIDTH - indent - 5: head = head.replace(" ", "\0")  # stays on one line
        lines += filled(f"{head}: {text}" if text else head, indent, " " * 4, " " * 8)
    return [line.replace("\0", " ") for line in lines]


def body(definition: Definition, indent: int) -> list[str]:
    "The lines of the new docstring, not yet indented; none where the old one stays."
    d, is_class = definition, isinstance(definition.node, ast.ClassDef)
    said = d.text or d.result or any(a.comment for a in d.arguments) or is_class or d.node.name in CALLS
    if not said or BLOCK.search(d.text): return []
    text, errors = take_errors(d.text)
    blocks = block(d.heading, [explained(a) for a in d.arguments], indent) if d.arguments else []
    if d.returns: blocks += block("Returns", [(d.returns, d.result)], indent)
    if errors: blocks += block("Raises", errors, indent)
    if not blocks: return []
    if not text: return blocks
    lines = []
    for paragraph in text.split("\n\n"):
        fits = all(len(line) <= WIDTH - indent - 3 for line in paragraph.split("\n"))  # 3 for the quotes
        lines += ["", *(paragraph.split("\n") if fits else filled(f"\0\0\0{paragraph}", indent))]
    return [line.lstrip("\0") for line in lines[1:]] + blocks


def literal(lines: list[str], indent: int) -> str:
    "Lines as a docstring in the source, from its first quote to its last."
    margin = " " * indent
    safe = [line.replace("\\", "\\\\").replace('"""', r"\"\"\"") for line in lines]
    return '"""' + "\n".join(margin + line if line and i else line for i, line in enumerate(safe)) + f'\n{margin}"""'


def expand(source: str) -> str:
    """The source of a module with the comments of its arguments and results in docstrings too; all
    else as it was."""
    module, edits = Module(source), []
    for d in module.definitions():
        first, indent = d.node.body[0], d.node.col_offset + 4
        lines = body(d, indent)
        if not lines: continue
        place = module.place(first)
        if ast.get_docstring(d.node) is not None: edits.append((place, literal(lines, indent)))
        elif first.lineno > d.node.lineno and not module.data[module.starts[first.lineno - 1] : place.start].strip():
            line = min([first.lineno, *(n.lineno for n in getattr(first, "decorator_list", []))])
            start = module.starts[line - 1]
            edits.append((slice(start, start), f"{' ' * indent}{literal(lines, indent)}\n"))
    data = module.data
    for place, text in reversed(edits): data = data[: place.start] + text.encode() + data[place.stop :]
    return data.decode()


def main(paths: list[Path]) -> None:
    "Expand the docstrings of modules, each in its place."
    for path in paths:
        if path.name.startswith("_"): continue
        source = path.read_bytes().decode()
        if (wanted := expand(source)) != source: path.write_bytes(wanted.encode())


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
