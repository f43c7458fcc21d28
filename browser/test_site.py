"The website as a reader has it: every link leads somewhere, every page opens cleanly in light and dark, on a desk and on a phone."
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

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


@pytest.mark.parametrize("name", NAMES)
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
