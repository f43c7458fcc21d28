"The built site behind a local server, and a browser."
import functools
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parent.parent
SITE = ROOT / "_docs" / "site"
NAMES = "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]


def pytest_configure(config):
    if not (SITE / "index.html").exists(): raise pytest.UsageError(f"{SITE}: no index.html: want the built site (make docs)")


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments): pass


@pytest.fixture(scope="session")
def address():
    "Where the site is served."
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(QuietHandler, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="session")
def browser():
    executable = next((found for name in NAMES if (found := shutil.which(name))), None)
    if not executable: raise FileNotFoundError(f"none of {', '.join(NAMES)} is on the PATH: want Chromium (on Debian and Ubuntu: apt-get install chromium)")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=executable, headless=True, args=ARGUMENTS)
        yield running
        running.close()
