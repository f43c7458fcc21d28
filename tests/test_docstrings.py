"What `tools/docstrings.py` writes into docstrings, and that `help()` names every argument of the public names."
import ast
import importlib
import inspect
import re
import sys
from pathlib import Path

import pytest

import detr_nb

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from docstrings import BLOCK, CALLS, WIDTH, Module, expand, main

MODULES = sorted(p for p in Path(detr_nb.__file__).parent.glob("*.py") if not p.name.startswith("_"))


def documented(source: str, *names: str) -> str:
    "The docstring of one definition, after the expansion."
    nodes = ast.parse(expand(source)).body
    for name in names: node, nodes = (found := next(n for n in nodes if getattr(n, "name", "") == name)), found.body
    return ast.get_docstring(node)


FUNCTION = '''def keep(
    scores: Tensor,           # (B, N) from 0 to 1
    threshold: float = 0.5,   # only scores strictly above are kept
    mask: Tensor | None = None,
    low: int = 0, high: int = 9,  # bounds of the class
    *names: str,
    lr: float = 1e-4,  # noqa: E501
    **changes,                # set after
) -> Tensor:                  # (B, N) bool
    "Which are kept."
    return scores > threshold
'''


def test_a_function():
    assert documented(FUNCTION, "keep") == """Which are kept.

Args:
    scores (Tensor): (B, N) from 0 to 1
    threshold (float): only scores strictly above are kept. Defaults to 0.5.
    mask (Tensor | None)
    low (int): bounds of the class. Defaults to 0.
    high (int): bounds of the class. Defaults to 9.
    *names (str)
    lr (float): Defaults to 1e-4.
    **changes: set after

Returns:
    Tensor: (B, N) bool"""


def test_a_comment_behind_the_whole_signature_is_the_result():
    text = documented('def area(box: Tensor) -> Tensor:  # (N,) pixels\n    "How large."\n', "area")
    assert text == "How large.\n\nArgs:\n    box (Tensor)\n\nReturns:\n    Tensor: (N,) pixels"


def test_errors():
    text = documented('''def make(name):
    """A network of timm's. `ValueError` for a name timm does not have, `OSError` where weights
    cannot be fetched. It is frozen. `KeyError` or `TypeError` that names the entry."""
''', "make")
    assert text == (
        "A network of timm's. It is frozen.\n\nArgs:\n    name\n\nRaises:\n"
        "    ValueError: for a name timm does not have.\n    OSError: where weights cannot be fetched.\n"
        "    KeyError: that names the entry.\n    TypeError: that names the entry."
    )


@pytest.mark.parametrize("text", [
    "`ValueError` for a box without area. `TypeError` for a word.",
    "Checked: `ValueError` names the field.",
    "The `ValueError` of a box. Nothing else.",
])
def test_an_error_that_is_part_of_the_summary_stays(text):
    assert documented(f'def check(box):\n    "{text}"\n', "check") == f"{text}\n\nArgs:\n    box"


def test_a_class_explains_what_it_is_made_from():
    source = '''class Head(nn.Module):
    "Scores of classes."
    def __init__(
        self,
        width: int,  # of a query
    ):
        "Not shown."
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x

    def __call__(self, x): return x

    def __len__(self): return 1

    def plain(self, x): return x

    def told(
        self,
        x: Tensor,  # (B, N)
    ):
        return x

    @property
    def size(self) -> int:
        "How wide."
        return 1

class Wide(Head):
    "A head that is wide."

class _Hidden:
    def told(self, x):  # nothing
        "Private."
'''
    assert documented(source, "Head") == "Scores of classes.\n\nArgs:\n    width (int): of a query"
    assert documented(source, "Wide") == "A head that is wide.\n\nArgs:\n    width (int): of a query"
    assert documented(source, "Head", "__init__") == "Not shown."
    assert documented(source, "Head", "forward") == "Args:\n    x (Tensor)\n\nReturns:\n    Tensor"
    assert documented(source, "Head", "told") == "Args:\n    x (Tensor): (B, N)"
    assert documented(source, "Head", "size") == "How wide.\n\nReturns:\n    int"
    assert documented(source, "Head", "plain") is documented(source, "Head", "__len__") is None
    assert documented(source, "_Hidden", "told") == "Private."


def test_fields():
    source = '''@dataclass(frozen=True)
class Base:
    "How to train."
    steps: int | None = None          # length
    lr: float = 1e-4
    extra: dict = field(default_factory=dict)  # the rest
    _cache: int = 0

class Recipe(Base):
    "A recipe."

class Pairs(NamedTuple):
    "Who belongs to whom."
    query: Tensor  # (T,)
'''
    fields = (
        "Attributes:\n    steps (int | None): length\n    lr (float): Defaults to 1e-4.\n"
        "    extra (dict): the rest. Defaults to dict()."
    )
    assert documented(source, "Base") == f"How to train.\n\n{fields}"
    assert documented(source, "Recipe") == f"A recipe.\n\n{fields}"
    assert documented(source, "Pairs") == "Who belongs to whom.\n\nAttributes:\n    query (Tensor): (T,)"


@pytest.mark.parametrize("decorator", ["app.command()", 'data_app.command(name="train")', "app.callback()"])
def test_commands_keep_their_help(decorator):
    source = f'@{decorator}\ndef train(\n    out: Path,  # folder\n):\n    "Train."\n'
    assert expand(source) == source


def test_what_is_private_or_inside_a_function_stays():
    source = 'def _hidden(\n    x,  # it\n): "Private."\n\nclass A:\n    "A."\n    def _hidden(self, x): "Private."\n'
    assert expand(source) == source
    inner = "    def inner(\n        y,  # it\n    ):\n        'Inner.'\n"
    assert inner in expand(f'def outer(x):\n    "Outer."\n{inner}')


def test_all_else_stays_byte_for_byte():
    source = "# %% ../nbs/x.ipynb #12ab\n" + FUNCTION + "\n# %% auto #0\n__all__ = ['keep']  # “…” é\n"
    expanded = expand(source)
    start, end = source.index('    "Which'), source.index("    return")
    assert expanded.startswith(source[:start]) and expanded.endswith(source[end:])
    assert expand(expanded) == expanded


@pytest.mark.parametrize("text", [
    r'"A \\d and \"quotes\" …"', r"r'\d and \w'", r'"ends in \\"',
    '"""Two lines,\n    then “more”."""',
])
def test_strings_keep_their_meaning(text):
    source = f"def f(\n    x: str = '\\n',  # é → \\d, \"\"\" too\n): {text}\n"
    before, after = (ast.get_docstring(ast.parse(s).body[0]) for s in (source, expand(source)))
    assert after == before + "\n\nArgs:\n    x (str): é → \\d, \"\"\" too. Defaults to '\\n'."
    listed = f'"""{"Long. " * 30}\n\n    - a list\n      stays"""'
    source = f'y = "é"\nclass A:\n    {listed}\n    def __init__(self, ä): pass\n'
    text = documented(source, "A")
    assert text.startswith("Long. Long.") and text.endswith("\n\n- a list\n  stays\n\nArgs:\n    ä")


def test_long_entries_hang():
    words, text = "word " * 40, "A sentence. " * 12
    source = f"def f(\n    x: dict[str, int],  # {words}\n    y: tuple[int, int] = (1, 2),\n):\n    {text!r}\n"
    lines = expand(source).splitlines()
    at = lines.index("    Args:")
    assert lines[at + 1].startswith("        x (dict[str, int]): word word")
    assert lines[at + 2].startswith("            word")
    assert "        y (tuple[int, int]): Defaults to (1, 2)." in lines
    assert max(len(line) for line in lines[4:]) <= WIDTH


def test_a_function_without_a_docstring_before_a_decorated_body():
    source = "def f(\n    x,  # it\n):\n    # first\n    @inner\n    def g(): pass\n    return g\n"
    assert documented(source, "f") == "Args:\n    x: it"


def test_files(tmp_path):
    for name in ("lesson.py", "__init__.py"): (tmp_path / name).write_text(FUNCTION)
    main(sorted(tmp_path.iterdir()))
    assert (tmp_path / "lesson.py").read_text() == expand(FUNCTION)
    assert (tmp_path / "__init__.py").read_text() == FUNCTION
    before = (tmp_path / "lesson.py").stat().st_mtime_ns
    main([tmp_path / "lesson.py"])
    assert (tmp_path / "lesson.py").stat().st_mtime_ns == before


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_modules_are_expanded(path):
    "What `make export` wrote: nothing is left to do, and no block has a line that is too long."
    source = path.read_text(encoding="utf-8")
    assert expand(source) == source
    for definition in Module(source).definitions():
        if not BLOCK.search(definition.text): continue
        indent = definition.node.col_offset + 4
        assert all(len(line) + indent <= WIDTH for line in definition.text.splitlines()), definition.name


@pytest.mark.parametrize("path", [path for path in MODULES if path.stem not in ("__init__", "cli")], ids=lambda p: p.stem)
def test_no_block_written_by_hand_hides_the_arguments(path):
    "A block of errors in a docstring would keep the others from being made."
    module = importlib.import_module(f"detr_nb.{path.stem}")
    for name in module.__all__:
        value = getattr(module, name)
        if not inspect.isfunction(value) or value.__module__ != module.__name__: continue
        if inspect.signature(value).parameters and re.search(r"^ *(Returns|Raises):$", value.__doc__ or "", re.MULTILINE):
            assert "Args:" in value.__doc__, name


def callables(name: str) -> list[tuple]:
    "A public name with what can be called by it; of a class its public methods too."
    value = getattr(detr_nb, name)
    if not inspect.isclass(value): return [(name, value)] if callable(value) else []
    found = [(name, value)]
    for title, member in inspect.getmembers(value, callable):
        if inspect.isclass(member) or not (getattr(member, "__module__", "") or "").startswith("detr_nb."): continue
        if title in CALLS or not title.startswith("_"): found.append((f"{name}.{title}", member))
    return found


def explanation(value) -> str:
    "What `help()` says of a function; of a class with those it inherits from, as `help()` shows them."
    if not inspect.isclass(value): return inspect.getdoc(value) or ""
    return "\n".join(inspect.getdoc(c) or "" for c in value.__mro__ if c.__module__.startswith("detr_nb."))


@pytest.mark.parametrize("name", detr_nb.__all__)
def test_help_names_every_argument(name):
    missing = []
    for title, value in callables(name):
        names = set(inspect.signature(value).parameters) - {"self", "cls", "args", "kwargs"}
        text = explanation(value).replace("*", " ")
        explained = set(re.findall(r"^ +(\w+)", text, re.MULTILINE))
        missing += [f"{title}: {argument}" for argument in names - explained]
    assert not missing
