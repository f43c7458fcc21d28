"The package's metadata lie in settings.ini, where nbdev reads them too."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

config = ConfigParser(delimiters=["="])
config.read(Path(__file__).parent / "settings.ini", encoding="utf-8")
settings = config["DEFAULT"]
extras = {name: settings[f"{name}_requirements"].split() for name in ("dev", "course", "docs")}

setup(
    name=settings["lib_name"], version=settings["version"], description=settings["description"], keywords=settings["keywords"],
    author=settings["author"], license="Apache-2.0", python_requires=f">={settings['min_python']}",
    long_description=Path("README.md").read_text(encoding="utf-8") if Path("README.md").exists() else "", long_description_content_type="text/markdown",
    packages=find_packages(include=["detr_nb", "detr_nb.*"]), package_data={"detr_nb": ["assets/**/*"]}, include_package_data=True,
    install_requires=settings["requirements"].split(),
    extras_require={**extras, "dev": extras["dev"] + extras["course"]},
    entry_points={"console_scripts": [settings["console_scripts"]]},
)
