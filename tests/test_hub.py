"""One assignment goes the whole way on a JupyterHub, as a teacher and two students, by the addresses that the buttons of
their pages call: released, fetched, answered, validated, submitted, collected, graded, returned."""
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest
import requests

ROOT = Path(__file__).parent.parent
NAME = "01_boxes"
NOTEBOOK = f"{NAME}/{NAME}.ipynb"
SECONDS = 300  # the longest wait for one thing
HUB = Path(sys.executable).with_name("jupyterhub")
PROXY = shutil.which("configurable-http-proxy") or str(Path(sys.prefix) / "hub" / "node_modules" / ".bin" / "configurable-http-proxy")


class User:
    "Somebody with a browser."
    def __init__(self, url: str, name: str):
        self.url, self.name, self.session = url, name, requests.Session()
        self.session.trust_env = False  # no proxy of the environment on the way to this machine

    def token(self, path: str) -> str: return next(c.value for c in self.session.cookies if c.name == "_xsrf" and c.path == path)

    def log_in(self) -> "User":
        self.session.get(f"{self.url}/hub/login", timeout=SECONDS).raise_for_status()
        form = {"username": self.name, "password": "any", "_xsrf": self.token("/hub/")}
        assert self.session.post(f"{self.url}/hub/login", data=form, timeout=SECONDS, allow_redirects=False).status_code == 302
        self.session.get(f"{self.url}/hub/spawn", timeout=SECONDS).raise_for_status()
        wait(f"{self.name}'s server", lambda: self.session.get(f"{self.url}/hub/api/users/{self.name}", timeout=SECONDS).json()["server"])
        page = self.session.get(f"{self.url}/user/{self.name}/lab", timeout=SECONDS)
        assert page.status_code == 200 and "@jupyter/nbgrader" in page.text  # the menu entries of nbgrader are there
        return self

    def ask(self, method: str, path: str, **options):
        headers = {"X-XSRFToken": self.token(f"/user/{self.name}/")}
        reply = self.session.request(method, f"{self.url}/user/{self.name}/{path}", headers=headers, timeout=SECONDS, **options)
        assert reply.ok, f"{self.name}: {method} {path}: {reply.status_code} {reply.text[-2000:]}"
        return reply

    def press(self, path: str, /, **data) -> dict:
        "A button of nbgrader's pages; it answers 200 also where it failed."
        reply = self.ask("POST", path, data=data).json()
        assert reply["success"], f"{path}: {reply}"
        return reply

    def assignment(self, action: str) -> dict[str, dict]:
        reply = self.press(f"assignments/{action}", course_id="detr", assignment_id=NAME)
        return {entry["status"]: entry for entry in reply["value"]}

    def read(self, path: str): return self.ask("GET", f"api/contents/{path}").json()["content"]


def wait(what: str, ready):
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        with suppress(requests.ConnectionError, requests.Timeout):
            if found := ready(): return found
        time.sleep(0.2)
    raise TimeoutError(f"{what}: nothing after {SECONDS} seconds")


@pytest.fixture()
def hub(tmp_path):
    "The address of a hub with the settings of `course/hub`, in a folder of its own."
    if not HUB.exists() or not Path(PROXY).exists(): pytest.skip("no JupyterHub here: make .venv/hub")
    for name in ("jupyterhub_config.py", "nbgrader_config.py"):
        text, count = re.subn(r'(?m)^FOLDER = "[^"]*"', f"FOLDER = {str(tmp_path)!r}", (ROOT / "course" / "hub" / name).read_text())
        assert count == 1
        (tmp_path / name).write_text(text)
    (tmp_path / "exchange").mkdir()
    (tmp_path / "exchange").chmod(0o777)
    home = tmp_path / "home" / "teacher" / "course"
    shutil.copytree(ROOT / "course" / "source" / NAME, home / "source" / NAME)
    shutil.copy(ROOT / "course" / "nbgrader_config.py", home)
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for one in sockets: one.bind(("127.0.0.1", 0))
        public, inside, api = (one.getsockname()[1] for one in sockets)
    url = f"http://127.0.0.1:{public}"
    options = [
        f"--JupyterHub.bind_url={url}", f"--JupyterHub.hub_port={inside}", f"--ConfigurableHTTPProxy.command={PROXY}",
        f"--ConfigurableHTTPProxy.api_url=http://127.0.0.1:{api}",
    ]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "JPY_", "CONFIGPROXY"))}
    with open(tmp_path / "hub.log", "w") as log:
        running = subprocess.Popen([HUB, "-f", tmp_path / "jupyterhub_config.py", *options], cwd=tmp_path, env=clean, stdout=log, stderr=log)
    try:
        wait("the hub", lambda: running.poll() is not None or requests.get(f"{url}/hub/api/", timeout=5).ok)
        assert running.poll() is None, (tmp_path / "hub.log").read_text()[-3000:]
        yield url
    finally:
        family = psutil.Process(running.pid).children(recursive=True)
        running.send_signal(signal.SIGTERM)  # the hub stops its servers and the proxy
        with suppress(subprocess.TimeoutExpired): running.wait(30)
        running.kill()
        for process in psutil.wait_procs(family, timeout=20)[1]:
            with suppress(psutil.NoSuchProcess): process.kill()


@pytest.mark.timeout(900)
def test_an_assignment_goes_the_whole_way(hub):
    teacher, ada, alan = (User(hub, name).log_in() for name in ("teacher", "ada", "alan"))
    assert "detr" in teacher.ask("GET", "formgrader").text
    for student in (ada, alan): teacher.ask("PUT", f"formgrader/api/student/{student.name}", json={"first_name": student.name})
    for action in ("assign", "release"): teacher.press(f"formgrader/api/assignment/{NAME}/{action}")
    for student in (ada, alan): assert "fetched" in student.assignment("fetch")

    source = json.loads((ROOT / "course" / "source" / NOTEBOOK).read_text())
    sources = {c["metadata"].get("nbgrader", {}).get("grade_id"): "".join(c["source"]) for c in source["cells"]}
    answers = {k: re.sub(r" *### (BEGIN|END) SOLUTION\n?", "", v) for k, v in sources.items() if "BEGIN SOLUTION" in v}
    notebook = ada.read(NOTEBOOK)
    for cell in notebook["cells"]:
        name = cell["metadata"].get("nbgrader", {}).get("grade_id")
        if name in answers: cell["source"] = answers[name]
    ada.ask("PUT", f"api/contents/{NOTEBOOK}", json={"type": "notebook", "content": notebook})
    assert ada.press("assignments/validate", path=NOTEBOOK)["value"] == {}
    assert len(alan.press("assignments/validate", path=NOTEBOOK)["value"]["failed"]) == len(answers)
    for student in (ada, alan): assert student.assignment("submit")["submitted"]["student_id"] == student.name

    teacher.press(f"formgrader/api/assignment/{NAME}/collect")
    for student in (ada, alan): teacher.press(f"formgrader/api/submission/{NAME}/{student.name}/autograde")
    marks = {s["student"]: s for s in teacher.ask("GET", f"formgrader/api/submissions/{NAME}").json()}
    assert marks["ada"]["code_score"] == marks["ada"]["max_code_score"] > 0 and marks["alan"]["code_score"] == 0
    papers = teacher.ask("GET", f"formgrader/api/submitted_notebooks/{NAME}/{NAME}").json()
    page = teacher.ask("GET", f"formgrader/submissions/{papers[0]['id']}").text
    scheme = re.search(r"### BEGIN MARK SCHEME\n(\w+ \w+ \w+)", "\n".join(sources.values()))
    assert scheme and scheme[1] in page  # the page on which one grades shows the mark scheme
    for action in ("generate_feedback", "release_feedback"): teacher.press(f"formgrader/api/assignment/{NAME}/{action}")
    for student in (ada, alan):
        submission = student.assignment("fetch_feedback")["submitted"]["submissions"][-1]
        feedback = re.sub(r"<[^>]*>|\s+", " ", student.read(f"{submission['local_feedback_path']}/{NAME}.html"))
        assert f"Score: {marks[student.name]['code_score']}" in feedback
