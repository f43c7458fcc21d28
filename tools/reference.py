"""The website's reference pages: modules, whose docstrings Sphinx reads itself, and commands, from
the typer app."""
import ast
import re
from pathlib import Path


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


def value(name: str, node: ast.Assign | ast.AnnAssign, source: str, most: int = 25) -> list[str]:
    "A constant, as it is written where it is not too long."
    lines = ast.get_source_segment(source, node).splitlines()
    shown = lines if len(lines) <= most else [*lines[:most], "…"]
    return [f"`````{{py:data}} {name}", "````python", *shown, "````", "`````", ""]


def chapter_of(path: Path) -> str:
    "The chapter that exports a module."
    found = re.search(r"File to edit: \.\./nbs/(\w+)\.ipynb", path.read_text(encoding="utf-8"))
    if not found:
        raise ValueError(f"{path}: no line 'File to edit: ../nbs/….ipynb': want a module that a chapter exports")
    return found[1]


def module_page(path: Path) -> str:
    """One module: what `__all__` names, in the order of the source. Functions and classes are left
    to Sphinx."""
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    assigned = {t.id: n for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
    public = set(ast.literal_eval(assigned["__all__"].value))
    page = [
        f"# {path.stem}",
        "",
        f"{ast.get_docstring(tree)}. Derived in the chapter [](../{chapter_of(path)}.ipynb).",
    ]
    page += ["", f"```{{py:module}} detr_nb.{path.stem}", "```", ""]
    for node in tree.body:
        if getattr(node, "name", None) in public:
            kind = "autoclass" if isinstance(node, ast.ClassDef) else "autofunction"
            page += ["```{eval-rst}", f".. {kind}:: detr_nb.{path.stem}.{node.name}", "```", ""]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [t.id for t in targets if isinstance(t, ast.Name) and t.id in public]
            for name in names: page += value(name, node, source)
    return "\n".join(page) + "\n"


def api_page(package: Path, modules: list[Path]) -> str:
    "The list of modules, and what can be imported from the package itself."
    tree = ast.parse((package / "__init__.py").read_text(encoding="utf-8"))
    homes = next(
        ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "_HOMES"
    )
    first = [
        [f"[`{name}`](#detr_nb.{module}.{name})", f"[](api/{module}.md)"]
        for module, names in homes.items()
        for name in names.split()
    ]
    rows = [[f"[](api/{m.stem}.md)", ast.get_docstring(ast.parse(m.read_text(encoding="utf-8")))] for m in modules]
    page = [
        "# API",
        "",
        "Each module is exported by the chapter that derives it.",
        *table(["module", "what is in it"], rows),
    ]
    page += [
        "## From the package itself",
        "",
        "`from detr_nb import …` has these:",
        *table(["name", "module"], sorted(first)),
    ]
    return "\n".join([*page, "```{toctree}", ":hidden:", "", *(f"api/{m.stem}" for m in modules), "```", ""])


def option_row(parameter, context) -> list[str]:
    "One option or argument: how it is written, its default and its bounds, what it does."
    written, text = parameter.get_help_record(context)
    what, bounds = re.fullmatch(r"(.*?)\s*(?:\[([^\[\]]*)\])?", text, re.DOTALL).groups()
    what = re.sub(r"(?<![\w`-])--[\w-]+", r"`\g<0>`", what)  # another option
    return [code(written.replace("|", " | ")), cell((bounds or "").replace("default: ", "")), cell(what)]


def command_sections(command, path: str) -> list[str]:
    "A command, then those below it."
    below = getattr(command, "commands", {})
    lines = [f"## {path}" if " " in path else "# Commands and options", "", command.help or "", ""]
    if not below:
        context = command.context_class(command, info_name=path)
        rows = [option_row(p, context) for p in command.get_params(context) if p.name != "help"]
        lines += [
            "```text", command.get_usage(context).removeprefix("Usage: "), "```",
            *table(["option", "default", "what it does"], rows),
        ]
    for name, child in below.items(): lines += command_sections(child, f"{path} {name}")
    return lines


def command_page() -> str:
    "The command line, from the typer app itself."
    from typer.main import get_command

    from detr_nb.cli import app
    return "\n".join(command_sections(get_command(app), "detr-nb")) + "\n"
