"The website as a reader has it: every link leads somewhere, every page opens cleanly in light and dark, on a desk and on a phone."
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest

from conftest import ROOT, SITE

PAGES = sorted(SITE.rglob("*.html"))
NAMES = [p.relative_to(SITE).as_posix() for p in PAGES]
WIDTHS = {"desk": 1280, "phone": 390}
SHOTS = ROOT / "build" / "browser"
SHOWN = "index.html", "00_start.html", "12_transformer.html", "13_matcher.html", "api/matcher.html", "command_line.html"


class Page(HTMLParser):
    "What a page links to, what can be linked to in it, and its pictures."
    def __init__(self, path: Path):
        super().__init__()
        self.links, self.ids, self.pictures = [], set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list):
        values = dict(attributes)
        self.links += [values[k] for k in ("href", "src") if k in values]
        if "id" in values: self.ids.add(values["id"])
        if tag == "img": self.pictures.append(values)


@pytest.fixture(scope="session")
def parsed() -> dict[Path, Page]:
    return {path: Page(path) for path in PAGES}


def fault(link: str | None, path: Path, parsed: dict[Path, Page]) -> str | None:
    "What is wrong with a link, if anything."
    if not link: return "empty"
    parts = urlsplit(link)
    if parts.scheme == "data": return None
    if parts.scheme or parts.netloc: return None if parts.scheme == "https" and "." in parts.netloc else "want https and a host"
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if not target.is_file(): return f"no file {target}"
    if parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in parsed[target].ids: return f"no id {parts.fragment!r} in {target.name}"
    return None


def test_there_are_pages():
    "A page for every notebook, and every module."
    expected = {p.stem for p in (ROOT / "nbs").glob("*.ipynb")} | {f"api/{p.stem}" for p in (ROOT / "detr_nb").glob("*.py") if p.name[0] != "_"}
    assert expected | {"api", "command_line", "search"} <= {n.removesuffix(".html") for n in NAMES}


def test_links(parsed):
    faults = [f"{path.relative_to(SITE)}: {link!r}: {wrong}" for path, page in parsed.items() for link in page.links if (wrong := fault(link, path, parsed))]
    assert not faults, "\n".join(faults)
    print(f"{sum(len(p.links) for p in parsed.values())} links in {len(parsed)} pages")


def test_pictures_have_alternatives(parsed):
    bare = [f"{path.relative_to(SITE)}: {p['src']}" for path, page in parsed.items() for p in page.pictures if len((p.get("alt") or "").split()) < 3]
    assert not bare, "no text alternative of three words or more:\n" + "\n".join(bare)


@pytest.fixture(scope="session")
def contexts(browser) -> dict:
    "By day and by night."
    return {theme: browser.new_context(color_scheme=theme, viewport={"width": WIDTHS["desk"], "height": 844}) for theme in ("light", "dark")}


def open_page(context, address: str, name: str) -> tuple:
    "A page, and all that goes wrong in it from its first request on."
    page, faults = context.new_page(), []
    page.on("console", lambda m: faults.append(f"console {m.type}: {m.text}") if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: faults.append(f"page error: {e}"))
    page.on("requestfailed", lambda r: faults.append(f"failed: {r.url}"))
    page.on("response", lambda r: faults.append(f"{r.status}: {r.url}") if r.status >= 400 else None)
    page.on("request", lambda r: None if r.url.startswith((address, "data:")) else faults.append(f"another host: {r.url}"))
    page.goto(f"{address}/{name}", wait_until="load")
    return page, faults


SOURCES = [name for name in NAMES if name.startswith("_modules/")]  # one of these pages stands for all


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SOURCES[1:]])
def test_page(contexts, address, name):
    for theme, context in contexts.items():
        page, faults = open_page(context, address, name)
        for device, width in WIDTHS.items():
            page.set_viewport_size({"width": width, "height": 844})
            widest = page.evaluate("Math.max(...[document.documentElement, ...document.querySelectorAll('.content')].map(e => e.scrollWidth))")
            if name in SHOWN: page.screenshot(path=SHOTS / f"{name.removesuffix('.html').replace('/', '_')}_{theme}_{device}.png")
            assert widest <= width, f"{theme}, {device}: {widest} pixels wide: want at most {width}"
        page.close()
        assert not faults, f"{theme}: {faults}"


def test_themes_differ(contexts, address):
    colours = []
    for theme in ("light", "dark"):
        page, _ = open_page(contexts[theme], address, "index.html")
        colours.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        page.close()
    assert colours[0] != colours[1]


FIRST = {  # what a user types → the page that has to come first
    "fine-tune": "42_own_data", "custom dataset": "42_own_data", "train on my own images": "42_own_data",
    "YOLO": "96_datasets", "VOC": "96_datasets", "GPU": "43_scaling", "multi-GPU": "43_scaling", "export": "51_speed",
    "ONNX": "51_speed", "AP": "33_evaluation", "Colab": "index",
}


@pytest.mark.parametrize("words", FIRST)
def test_the_right_page_is_found_first(contexts, address, words):
    page, faults = open_page(contexts["light"], address, "index.html")
    page.fill("input[name=q]", words)
    page.press("input[name=q]", "Enter")
    page.wait_for_function("document.querySelector('#search-results p.search-summary, #search-results li a')")
    page.wait_for_selector("#search-results li a")
    page.wait_for_timeout(300)  # results are shown one after the other
    first = page.locator("#search-results li a").first.get_attribute("href")
    page.close()
    assert first.startswith(f"{FIRST[words]}.html"), first
    assert not faults, faults


def test_code_fits_a_desk(contexts, address):
    "At most one block of code in twenty has to be scrolled sideways; every block can be copied."
    wide, count = [], 0
    page = contexts["light"].new_page()
    page.set_viewport_size({"width": WIDTHS["desk"], "height": 844})
    for name in NAMES:
        if not name[0].isdigit(): continue
        page.goto(f"{address}/{name}")
        blocks = page.evaluate("""[...document.querySelectorAll('div.cell_input div.highlight pre')].map(
            e => [e.scrollWidth > e.clientWidth, !!e.parentElement.querySelector('button.copybtn')])""")
        assert all(copied for _, copied in blocks), name
        wide += [name for scrolls, _ in blocks if scrolls]
        count += len(blocks)
    page.close()
    assert count > 1000 and len(wide) <= 0.05 * count, f"{len(wide)} of {count} scroll: {sorted(set(wide))}"


LIVE = {"12_transformer": "attention", "13_matcher": "matching", "41_training": "training"}


@pytest.mark.parametrize("stem", LIVE)
def test_live_figures_answer_to_pointer_and_keyboard(contexts, address, stem):
    page, faults = open_page(contexts["light"], address, f"{stem}.html")
    widget = page.locator(".live-widget")
    widget.scroll_into_view_if_needed()
    assert page.locator(".live img").is_visible() and "Try it" in widget.locator(".live-legend").inner_text()
    said = lambda: widget.locator(".live-said").inner_text()
    looks = lambda: widget.locator(".live-look").evaluate_all("cells => cells.map(c => c.getAttribute('x') + c.getAttribute('opacity')).join()")
    first = said(), looks()
    widget.locator("rect[data-query]").last.hover(force=True)  # the smallest box lies on top
    pointed = said(), looks()
    assert pointed != first and pointed[0].startswith("Query ")
    number = int(pointed[0].split()[1].rstrip(":"))
    widget.locator(f"button[data-query='{number}']").focus()
    page.keyboard.press("ArrowRight")
    assert said().startswith(f"Query {(number + 1) % 25}: ") and looks() != pointed[1]
    bars = widget.locator(".live-bars > div").all_inner_texts()
    assert len(bars) == 5 and sum(float(bar.split()[-1]) for bar in bars) > 0.5
    if LIVE[stem] != "attention":
        widget.locator("input[type=range]").focus()
        page.keyboard.press("Home")
        assert widget.locator("output").inner_text().strip() == "step 0" and said() != first[0]
        widget.locator("input[type=range]").fill("11")
    if LIVE[stem] == "matching":
        rows = widget.locator("table tr")
        assert rows.count() == 26 and widget.locator("td.live-pair").count() == rows.first.locator("th").count() - 1
        rows.nth(6).hover()
        assert said().startswith("Query 5: ") and rows.nth(6).get_attribute("class") == "live-now"
    widget.get_by_text("scene 2").click()
    assert said() != first[0]
    page.screenshot(path=SHOTS / f"live_{stem}.png")
    page.close()
    assert not faults, faults


def test_still_figures_show_without_javascript(browser, address):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    for stem in LIVE:
        page.goto(f"{address}/{stem}.html")
        assert page.locator(".live img").is_visible() and page.locator(".live-widget").count() == 0
    context.close()
    assert sum((SITE / name).stat().st_size for name in ("live_data.js", "_static/live.js")) < 2e6


def test_a_function_leads_to_its_source(contexts, address):
    "From its entry in the reference to the lines that define it: here, or where the repository is published."
    page, faults = open_page(contexts["light"], address, "api/boxes.html")
    link = page.locator("[id='detr_nb.boxes.box_iou'] a:has(.viewcode-link)").get_attribute("href")
    page.close()
    assert link == "../_modules/detr_nb/boxes.html#box_iou" or "/detr_nb/boxes.py#L" in link
    assert not faults, faults


def test_search(contexts, address):
    page, faults = open_page(contexts["light"], address, "index.html")
    page.fill("input[name=q]", "Hungarian")
    page.press("input[name=q]", "Enter")
    page.wait_for_selector("#search-results li a")
    found = page.locator("#search-results li a").evaluate_all("links => links.map(a => a.href)")
    page.screenshot(path=SHOTS / "search.png")
    page.close()
    assert any("13_matcher.html" in link for link in found), found
    assert not faults, faults


def test_arguments_are_explained_once(contexts, address):
    "A function with its arguments and result; a record without its fields twice; links to what a docstring names."
    page, faults = open_page(contexts["light"], address, "api/boxes.html")
    entry = page.locator("[id='detr_nb.boxes.box_iou']").locator("xpath=..")
    assert entry.locator(".field-list dt").all_text_contents() == ["Parameters:", "Returns:"]
    assert entry.inner_text().count("(N, 4)") == 1 and "(Tensor) – " in entry.inner_text()
    page.close()
    page, more = open_page(contexts["light"], address, "api/matcher.html")
    text = page.locator("[id='detr_nb.matcher.PackedTargets']").locator("xpath=..").inner_text()
    assert text.count("counts (list[int])") == 1 and "Alias for" not in text
    assert page.locator("article dd a.reference[href='#detr_nb.matcher.PackedTargets']").count() > 0
    page.close()
    assert not faults + more


@pytest.mark.parametrize("path", sorted((ROOT / "nbs").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_page_shows_every_figure_of_its_notebook(parsed, path):
    "Also those whose code is not shown."
    notebook = nbformat.read(path, as_version=4)
    shown = [cell for cell in notebook.cells if not cell.source.startswith(("#| default_exp", "#| hide"))]
    kinds = "image/png", "image/svg+xml"
    outputs = [output for cell in shown for output in cell.get("outputs", []) if set(kinds) & set(output.get("data", {}))]
    pictures = parsed[SITE / f"{path.stem}.html"].pictures
    own = [p for p in pictures if re.fullmatch(r"_images/[0-9a-f]{64}\.\w+", p["src"])]  # others are files beside it
    assert len(own) == len(outputs), f"{len(own)} figures on the page, {len(outputs)} in the notebook"


def test_the_first_page_shows_the_comparison():
    assert "times as fast" in (SITE / "index.html").read_text(encoding="utf-8")


def test_imports_are_folded(contexts, address):
    page = contexts["light"].new_page()
    page.goto(f"{address}/15_detector.html")
    folded = page.locator("details.hide")
    assert folded.count() >= 2 and not folded.first.evaluate("node => node.open")
    assert page.locator("article h1").count() == 1 and page.locator("article img").first.is_visible()
    page.close()
