"Sphinx's settings of the website; `tools/make_docs.py` writes the pages."
import inspect
import re
import sys
from importlib import import_module
from pathlib import Path

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
from address import published, read_settings  # noqa: E402

settings, address = read_settings(), published()
project = html_title = settings["title"]
author = settings["author"]
copyright = settings["copyright"]
release = settings["version"]
language = "en"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
extensions += ["sphinx.ext.linkcode" if address else "sphinx.ext.viewcode"]  # lines of source: there, or on this site
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # outputs are shown as they were kept
nb_merge_streams = True
nb_number_source_lines = False
smartquotes_action = "D"  # "--" between an argument and its explanation becomes a dash; quotes stay as they are

default_role = "py:obj"  # `name` in a docstring links to what has this name
autodoc_typehints = "none"  # types stand with the arguments
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
autodoc_default_options = {
    "members": True, "undoc-members": True, "show-inheritance": True,
    "inherited-members": "Module, Dataset, dict, tuple, str",  # theirs are not shown
}
napoleon_custom_sections = [("Attributes", "params_style")]  # a record's fields are what it is made from
napoleon_use_rtype = False

html_theme = "furo"
pygments_dark_style = "a11y-high-contrast-dark"
html_math_renderer = "mathml"
html_static_path = ["."]
html_css_files = ["site.css"]
html_js_files = ["live.js"]
html_favicon = "favicon.svg"
html_extra_path = ["../../_docs/extra"]  # the notebooks to download, the image of a link
copybutton_selector = "div.highlight:not(.output *) pre"
viewcode_follow_imported_members = False
html_copy_source = False
html_show_sphinx = False
html_domain_indices = False
html_use_index = False
html_theme_options = {"source_edit_link": "", "source_view_link": ""}
add_module_names = False
toc_object_entries_show_parents = "hide"


def linkcode_resolve(domain, info):
    "The lines of the repository in which a function or class is defined."
    value = module = import_module(info["module"])
    for name in info["fullname"].split("."): value = getattr(value, name, None)
    value = inspect.unwrap(value.fget if isinstance(value, property) else value) if value is not None else None
    try: lines, first = inspect.getsourcelines(value)
    except TypeError: return None  # a constant
    if inspect.getsourcefile(value) != module.__file__: return None  # inherited from somebody else
    return f"{address.source(f'detr_nb/{Path(module.__file__).name}')}#L{first}-L{first + len(lines) - 1}"


def no_field(app, what, name, value, skip, options):
    "Members of a class are its methods and properties; its fields are explained once, with its arguments."
    return skip or (what == "class" and not inspect.isroutine(value) and not isinstance(value, property))


def plain_stars(app, what, name, value, options, lines):
    "A star before a name, as in (T, *size), is a star, unless a second one makes it emphasis."
    lines[:] = [re.sub(r"(?<![\w*`])\*(\w+)(?![\w*])", r"\\*\1", line) for line in lines]


def setup(app):
    "Formulas become MathML, which browsers draw by themselves: no script, no font, no request."
    app.connect("autodoc-skip-member", no_field)
    app.connect("autodoc-process-docstring", plain_stars, priority=400)  # before napoleon
    def inline(writer, node):
        writer.body.append(convert(node.astext()))
        raise SkipNode

    def block(writer, node):
        writer.body.append(f'<div class="formula">{convert(node.astext(), display="block")}</div>\n')
        raise SkipNode

    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True}
