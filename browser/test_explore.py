"""The chapter Explore in a real browser: JupyterLab, headless Chromium, every list picked from and every slider moved by keyboard once.

Screenshots go to `build/browser/`. `pytest browser`; wants jupyterlab, ipywidgets, playwright, and Debian's `chromium`.
"""
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import expect

ROOT = Path(__file__).parent.parent
SHOTS = ROOT / "build" / "browser"
WIDGETS = {  # of the chapter, in order: their controls
    "query": ["query", "layer"], "hidden": ["query", "hidden"], "pixel": ["middle_of"],
    "matching": ["query", "right", "down", "size"], "training": ["query", "moment", "image"], "threshold": ["threshold"],
}
LISTS = {"query", "middle_of"}  # to pick from; the others are sliders
SETTINGS = {  # every cell stays in the page; nothing is fetched from elsewhere
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
}

SESSION = "window.jupyterapp.shell.currentWidget?.sessionContext"  # before it is ready, running a cell asks for a kernel


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "The address of a JupyterLab of its own, with a copy of the chapter without outputs."
    home = tmp_path_factory.mktemp("lab")
    notebook = json.loads((ROOT / "nbs" / "50_explore.ipynb").read_text())
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] = []
    (home / "work").mkdir()
    (home / "work" / "50_explore.ipynb").write_text(json.dumps(notebook))
    (home / "settings").mkdir()
    (home / "settings" / "overrides.json").write_text(json.dumps(SETTINGS))
    folders = {f"JUPYTER_{kind}_DIR": str(home / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
    environment = os.environ | folders | {
        "JUPYTERLAB_SETTINGS_DIR": str(home / "user"), "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"), "IPYTHONDIR": str(home / "ipython"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])), "OMP_NUM_THREADS": "1",
    }
    port = free_port()
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", f"--notebook-dir={home / 'work'}",
        "--IdentityProvider.token=", "--ServerApp.password=", f"--LabApp.app_settings_dir={home / 'settings'}", "--expose-app-in-browser",
        "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.extension_manager=readonly",
    ]
    with open(home / "log.txt", "w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/api", timeout=1).read()
                break
            except OSError:
                if server.poll() is not None:
                    raise RuntimeError((home / "log.txt").read_text()) from None
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="module")
def page(lab, browser):
    "The chapter, run from top to bottom, and what the console said."
    SHOTS.mkdir(parents=True, exist_ok=True)
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.said, page.abroad = [], []
    page.on("console", lambda m: page.said.append(f"{m.text} ({m.location.get('url', '')})") if m.type == "error" else None)
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("request", lambda r: page.abroad.append(r.url) if not r.url.startswith((lab, "data:", "blob:", lab.replace("http", "ws"))) else None)
    page.goto(f"{lab}/lab/tree/50_explore.ipynb")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=120_000)
    page.wait_for_function(f"{SESSION}?.session?.kernel?.connectionStatus === 'connected' && {SESSION}.isReady", timeout=60_000)
    page.evaluate("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_function(f"document.querySelectorAll('.jp-OutputArea .widget-html img').length === {len(WIDGETS)}", timeout=120_000)
    page.wait_for_function("document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status === 'idle'", timeout=60_000)
    yield page
    page.close()


def boxes(page):
    "The widgets of the chapter, each with sliders and a picture."
    return page.locator(".jp-OutputArea-output .widget-vbox:has(.widget-html img)")


def tab_to(page, handle):
    "From one control to the next as a keyboard goes: over a slider's number, which can be typed into."
    for _ in range(3):
        page.keyboard.press("Tab")
        if handle.evaluate("node => node === document.activeElement"):
            return
    raise AssertionError("three times Tab, and the next control is not reached")


def test_every_cell_ran(page):
    assert boxes(page).count() == len(WIDGETS)
    assert page.locator('.jp-RenderedText[data-mime-type="application/vnd.jupyter.stderr"]').count() == 0
    assert page.locator('.jp-RenderedText[data-mime-type="application/vnd.jupyter.error"]').count() == 0
    page.locator(".jp-Notebook").first.screenshot(path=SHOTS / "explore.png")


@pytest.mark.parametrize("number, name", list(enumerate(WIDGETS)), ids=list(WIDGETS))
def test_controls(page, number, name):
    box = boxes(page).nth(number)
    box.scroll_into_view_if_needed()
    assert [label.strip() for label in box.locator("> :not(.widget-html) > .widget-label").all_inner_texts()] == WIDGETS[name]
    box.screenshot(path=SHOTS / f"explore_{name}_0.png")
    image = box.locator("img")
    for i, control in enumerate(WIDGETS[name]):
        row = box.locator("> *").nth(i)
        handle = row.locator("select" if control in LISTS else ".noUi-handle")
        reading = lambda: handle.input_value() if control in LISTS else row.locator(".widget-readout").inner_text()  # noqa: B023
        before = image.get_attribute("src"), image.get_attribute("alt"), reading()
        handle.focus() if i == 0 else tab_to(page, handle)
        if control in LISTS: handle.select_option(index=1)
        else: page.keyboard.press("ArrowLeft" if handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemax") else "ArrowRight")
        for attribute, old in zip(("src", "alt"), before):
            expect(image, f"{attribute} after {control}").not_to_have_attribute(attribute, re.compile("^" + re.escape(old) + "$"), timeout=20_000)
        assert reading() != before[2]
        assert handle.evaluate("node => node === document.activeElement"), f"{control} lost the focus"
        assert image.evaluate("image => image.complete && image.naturalWidth > 200")
    box.screenshot(path=SHOTS / f"explore_{name}_1.png")


def test_console_is_quiet(page):
    assert page.said == []


def test_nothing_is_fetched_from_elsewhere(page):
    assert page.abroad == []
