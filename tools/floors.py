"""The oldest versions that `settings.ini` allows: `python tools/floors.py [pytest's arguments]` installs exactly these
into `.venv-floors`, beside what the tests need, and runs the tests that need no transformers."""
import configparser
import re
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
TESTS = (
    "tests/faults", "tests/test_faults.py", "tests/test_data.py", "tests/test_config.py", "tests/test_evaluation.py",
    "tests/test_losses.py", "tests/test_masks.py", "tests/test_scenes.py", "tests/test_quiet_faults.py",
)
TOOLS = "pytest>=8", "pytest-timeout", "hypothesis>=6.100", "fastcore<1.13", "nbformat"


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
    return subprocess.run(command, cwd=ROOT).returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
