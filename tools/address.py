"""Where the repository is published: settings.ini says it, once. While the placeholder stands there, nothing links to
it."""
from configparser import ConfigParser
from dataclasses import dataclass
from pathlib import Path

SETTINGS = Path(__file__).parent.parent / "settings.ini"
PLACEHOLDER = "your-account"  # settings.ini: user
NOT_FOR_COLAB = "jupyterlab", "nbgrader"  # of the course's requirements


@dataclass(frozen=True)
class Address:
    "The repository and the website, on GitHub or elsewhere."
    repository: str     # https://github.com/account/name
    branch: str
    site: str           # https://account.github.io/name

    def source(self, path: str) -> str:
        "The page of one file of the repository."
        return f"{self.repository}/blob/{self.branch}/{path}"

    def colab(self, stem: str) -> str | None:
        "A chapter in Colab, which opens what lies on GitHub, and nothing else."
        start = "https://github.com/"
        if not self.repository.startswith(start): return None
        place = f"{self.repository.removeprefix(start)}/blob/{self.branch}/nbs/{stem}.ipynb"
        return f"https://colab.research.google.com/github/{place}"


def read_settings(path: Path = SETTINGS):
    "The section of settings.ini that has everything."
    config = ConfigParser(delimiters=["="])
    config.read(path, encoding="utf-8")
    return config["DEFAULT"]


def published(path: Path = SETTINGS) -> Address | None:
    "Where all this can be found; None while settings.ini has the placeholder."
    settings = read_settings(path)
    if settings["user"] == PLACEHOLDER: return None
    return Address(settings["git_url"], settings["branch"], settings["doc_host"] + settings["doc_baseurl"])


def install_cell(path: Path = SETTINGS) -> str:
    """The first code cell of a chapter: it installs the package where it is missing, as in Colab. Without an address it
    says what to do instead."""
    address = published(path)
    lines = ["#| hide", "from importlib.util import find_spec", ""]
    if address is None:
        wanted = "detr_nb is not installed: write pip install . in its folder"
        return "\n".join([*lines, f'if not find_spec("detr_nb"): raise ModuleNotFoundError("{wanted}")'])
    needs = [f"detr_nb @ git+{address.repository}@{address.branch}", *course_needs(read_settings(path))]
    lines += [
        'if not find_spec("detr_nb"):  # as in Colab; elsewhere nothing happens',
        "    needs = [", *(f'        "{need}",' for need in needs), "    ]",
        '    get_ipython().run_line_magic("pip", "install --quiet " + " ".join(f"\'{need}\'" for need in needs))',
    ]
    return "\n".join(lines)


def course_needs(settings) -> list[str]:
    "What chapters import beside the library and its requirements."
    needs = settings["course_requirements"].split()
    return [need for need in needs if not need.startswith(NOT_FOR_COLAB)]
