"Sphinx's settings of the website; `tools/make_docs.py` writes the pages."
from configparser import ConfigParser
from pathlib import Path

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

ROOT = Path(__file__).parents[2]
config = ConfigParser(delimiters=["="])
config.read(ROOT / "settings.ini", encoding="utf-8")

project = html_title = config["DEFAULT"]["title"]
author = config["DEFAULT"]["author"]
copyright = config["DEFAULT"]["copyright"]
release = config["DEFAULT"]["version"]
language = "en"

extensions = ["myst_parser"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
smartquotes = False

html_theme = "furo"
pygments_dark_style = "a11y-high-contrast-dark"
html_math_renderer = "mathml"
html_static_path = ["."]
html_css_files = ["site.css"]
html_favicon = "favicon.svg"
html_copy_source = False
html_show_sphinx = False
html_domain_indices = False
html_use_index = False
html_theme_options = {"source_edit_link": "", "source_view_link": ""}
add_module_names = False
toc_object_entries_show_parents = "hide"


def setup(app):
    "Formulas become MathML, which browsers draw by themselves: no script, no font, no request."
    def inline(writer, node):
        writer.body.append(convert(node.astext()))
        raise SkipNode

    def block(writer, node):
        writer.body.append(f'<div class="formula">{convert(node.astext(), display="block")}</div>\n')
        raise SkipNode

    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True}
