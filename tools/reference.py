"The website's reference pages: modules from their source and its docments, commands from the typer app."
import ast
import io
import re
import tokenize
from pathlib import Path


def comments(source: str) -> dict[int, str]:
    "The comment on each line that has one; remarks to the linter are none."
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    found = {t.start[0]: t.string.lstrip("# ").split("# noqa")[0].strip() for t in tokens if t.type == tokenize.COMMENT}
    return {line: text for line, text in found.items() if not text.startswith("noqa")}


def cell(text: str) -> str:
    "Text in one line of a table."
    return " ".join(text.split()).replace("|", "\\|")


def code(text: str) -> str:
    "Inline code in a table."
    return f"`{cell(text)}`" if text else ""


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    "A table of markdown, without its empty columns."
    columns = [i for i in range(len(head)) if any(row[i] for row in rows)]
    lines = [" | ".join(row[i] for i in columns) for row in (head, ["---"] * len(head), *rows)]
    return ["", *(f"| {line} |" for line in lines), ""] if rows else []


def arguments(function: ast.FunctionDef) -> list[tuple[str, ast.arg, ast.expr | None]]:
    "Each argument but `self`: its name with its stars, where it stands, its default."
    a = function.args
    positional = [*a.posonlyargs, *a.args]
    defaults = [None] * (len(positional) - len(a.defaults)) + a.defaults
    found = [(x.arg, x, d) for x, d in zip(positional, defaults)]
    if a.vararg: found.append((f"*{a.vararg.arg}", a.vararg, None))
    found += [(x.arg, x, d) for x, d in zip(a.kwonlyargs, a.kw_defaults)]
    if a.kwarg: found.append((f"**{a.kwarg.arg}", a.kwarg, None))
    return [x for x in found if x[0] not in ("self", "cls")]


def signature(found: list) -> str:
    parts = [name + (f"={ast.unparse(default)}" if default is not None else "") for name, _, default in found]
    return f"({', '.join(parts)})"


def parameters(found: list, returns: ast.expr | None, notes: dict[int, str]) -> list[str]:
    "A table of arguments or fields, and of what comes back."
    unparse = lambda node: code(ast.unparse(node)) if node is not None else ""
    rows = [[code(name), unparse(node.annotation), unparse(default), cell(notes.get((default or node).end_lineno, ""))] for name, node, default in found]
    if returns is not None and ast.unparse(returns) != "None":
        rows.append(["*returns*", unparse(returns), "", cell(notes.get(returns.end_lineno, ""))])
    return table(["name", "type", "default", "what it is"], rows)


def entry(kind: str, name: str, body: list[str], depth: int, *options: str) -> list[str]:
    "A directive; the outer one has the longer fence."
    fence = "`" * (8 - depth)
    return [f"{fence}{{py:{kind}}} {name}", *options, "", *body, fence, ""]


def docstring(node: ast.AST) -> list[str]:
    return [ast.get_docstring(node) or "", ""]


def function(node: ast.FunctionDef, notes: dict[int, str], depth: int = 0) -> list[str]:
    decorators = [ast.unparse(d) for d in node.decorator_list]
    found = arguments(node)
    body = docstring(node) + parameters(found, node.returns, notes)
    if "property" in decorators: return entry("property", node.name, body, depth)
    options = [f":{d}:" for d in decorators if d in ("classmethod", "staticmethod")]
    return entry("method" if depth else "function", node.name + signature(found), body, depth, *options)


def class_(node: ast.ClassDef, notes: dict[int, str], classes: dict[str, ast.ClassDef]) -> list[str]:
    "A class with what it inherits from others of its module: a reader should not have to look for fields and methods there."
    family = [node]
    for one in family: family += [classes[base.id] for base in one.bases if isinstance(base, ast.Name) and base.id in classes]
    methods = {n.name: n for one in reversed(family) for n in one.body if isinstance(n, ast.FunctionDef)}
    fields = {n.target.id: n for one in reversed(family) for n in one.body if isinstance(n, ast.AnnAssign) and not n.target.id.startswith("_")}
    found = arguments(methods["__init__"]) if "__init__" in methods else [(name, n, n.value) for name, n in fields.items()]
    bases = [ast.unparse(b) for b in node.bases]
    body = docstring(node) + ([f"Bases: {', '.join(map(code, bases))}.", ""] if bases else []) + parameters(found, None, notes)
    for name, method in methods.items():
        if not name.startswith("_"): body += function(method, notes, depth=1)
    return entry("class", node.name + (signature(found) if found else ""), body, 0)


def value(name: str, node: ast.Assign | ast.AnnAssign, source: str, most: int = 25) -> list[str]:
    "A constant, as it is written where it is not too long."
    lines = ast.get_source_segment(source, node).splitlines()
    shown = lines if len(lines) <= most else [*lines[:most], "…"]
    return entry("data", name, ["````python", *shown, "````"], 0)


def chapter_of(path: Path) -> str:
    "The chapter that exports a module."
    found = re.search(r"File to edit: \.\./nbs/(\w+)\.ipynb", path.read_text(encoding="utf-8"))
    if not found: raise ValueError(f"{path}: no line 'File to edit: ../nbs/….ipynb': want a module that a chapter exports")
    return found[1]


def module_page(path: Path) -> str:
    "One module: what `__all__` names, in the order of the source."
    source = path.read_text(encoding="utf-8")
    tree, notes = ast.parse(source), comments(source)
    assigned = {t.id: n for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
    public = set(ast.literal_eval(assigned["__all__"].value))
    classes = {n.name: n for n in tree.body if isinstance(n, ast.ClassDef)}
    page = [f"# {path.stem}", "", f"{ast.get_docstring(tree)}. Derived in the chapter [](../{chapter_of(path)}.md).", ""]
    page += entry("module", f"detr_nb.{path.stem}", [], 0)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name in public: page += function(node, notes)
        elif isinstance(node, ast.ClassDef) and node.name in public: page += class_(node, notes, classes)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [t.id for t in targets if isinstance(t, ast.Name) and t.id in public]
            for name in names: page += value(name, node, source)
    return "\n".join(page) + "\n"


def api_page(package: Path, modules: list[Path]) -> str:
    "The list of modules, and what can be imported from the package itself."
    tree = ast.parse((package / "__init__.py").read_text(encoding="utf-8"))
    homes = next(ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "_HOMES")
    first = [[f"[`{name}`](#detr_nb.{module}.{name})", f"[](api/{module}.md)"] for module, names in homes.items() for name in names]
    rows = [[f"[](api/{m.stem}.md)", ast.get_docstring(ast.parse(m.read_text(encoding="utf-8")))] for m in modules]
    page = ["# API", "", "Each module is exported by the chapter that derives it.", *table(["module", "what is in it"], rows)]
    page += ["## From the package itself", "", "`from detr_nb import …` has these:", *table(["name", "module"], sorted(first))]
    return "\n".join([*page, "```{toctree}", ":hidden:", "", *(f"api/{m.stem}" for m in modules), "```", ""])


def option_row(parameter, context) -> list[str]:
    "One option or argument: how it is written, its default and its bounds, what it does."
    written, text = parameter.get_help_record(context)
    what, bounds = re.fullmatch(r"(.*?)\s*(?:\[([^\[\]]*)\])?", text, re.DOTALL).groups()
    return [code(written.replace("|", " | ")), cell((bounds or "").replace("default: ", "")), cell(what)]


def command_sections(command, path: str) -> list[str]:
    "A command, then those below it."
    below = getattr(command, "commands", {})
    lines = [f"## {path}" if " " in path else "# Commands and options", "", command.help or "", ""]
    if not below:
        context = command.context_class(command, info_name=path)
        rows = [option_row(p, context) for p in command.get_params(context) if p.name != "help"]
        lines += ["```text", command.get_usage(context).removeprefix("Usage: "), "```", *table(["option", "default", "what it does"], rows)]
    for name, child in below.items(): lines += command_sections(child, f"{path} {name}")
    return lines


def command_page() -> str:
    "The command line, from the typer app itself."
    from typer.main import get_command

    from detr_nb.cli import app
    return "\n".join(command_sections(get_command(app), "detr-nb")) + "\n"
