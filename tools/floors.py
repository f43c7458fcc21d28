"""The oldest versions that `settings.ini` allows: `python tools/floors.py [pytest's arguments]` installs exactly these
into `.venv-floors`, beside what the tests need, and runs tests; those that need transformers are skipped."""
import configparser
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
TESTS = ["tests/faults"] + [f"tests/test_{name}.py" for name in (
    "faults", "data", "config", "evaluation", "losses", "masks", "scenes", "quiet_faults", "backbone", "checkpoints",
    "detector",
)]
TOOLS = "pytest>=8", "pytest-timeout", "hypothesis>=6.100", "hotcoco>=1.3", "fastcore<1.13", "nbformat"


def floors(requirements: str) -> list[str]:
    "`name>=1.2` → `name==1.2`. `ValueError` for a requirement without a floor."
    found = []
    for requirement in requirements.split():
        name, _, version = requirement.partition(">=")
        if not re.fullmatch(r"\d+(\.\d+)*", version): raise ValueError(f"{requirement}: want NAME>=VERSION")
        found.append(f"{name}=={version}")
    return found


def main(arguments: list[str]) -> int:
    "Install, then test."
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(ROOT / "settings.ini")
    pins = floors(settings["DEFAULT"]["requirements"])
    folder = ROOT / ".venv-floors"
    python = folder / "bin" / "python"
    if not python.exists(): venv.create(folder, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *pins, *TOOLS], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--editable", str(ROOT)], check=True)
    print("\n".join(pins), flush=True)
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(arguments or TESTS)]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"DETR_NB_FLOORS": "1"}).returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
