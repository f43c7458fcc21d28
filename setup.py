"The package's metadata lie in settings.ini, where nbdev reads them too."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

STATUS = ["", "Planning", "Pre-Alpha", "Alpha", "Beta", "Production/Stable", "Mature", "Inactive"]
LICENSES = {"apache2": "Apache-2.0"}  # nbdev's word → SPDX's name
PYTHONS = ["3.10", "3.11", "3.12"]

root = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(root / "settings.ini", encoding="utf-8")
settings = config["DEFAULT"]
names = "dev", "course", "data", "export", "fast", "docs"
extras = {name: settings[f"{name}_requirements"].split() for name in names}
readme = root / "README.md"
license_name = LICENSES[settings["license"]]

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    keywords=settings["keywords"],
    author=settings["author"],
    license=license_name,
    project_urls={
        "Source": settings["git_url"],
        "Documentation": settings["doc_host"] + settings["doc_baseurl"],
        "Changelog": f"{settings['git_url']}/blob/{settings['branch']}/CHANGELOG.md",
        "Issues": f"{settings['git_url']}/issues",
    },
    classifiers=[
        f"Development Status :: {settings['status']} - {STATUS[int(settings['status'])]}",
        *(f"Intended Audience :: {audience}" for audience in settings["audience"].split()),
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        *(f"Programming Language :: Python :: {version}" for version in PYTHONS),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=f">={settings['min_python']}",
    packages=find_packages(include=["detr_nb", "detr_nb.*"]),
    package_data={"detr_nb": ["assets/**/*", "py.typed"]},
    include_package_data=True,
    install_requires=settings["requirements"].split(),
    extras_require={**extras, "dev": [p for name in ("dev", "course", "data", "export", "fast") for p in extras[name]]},
    entry_points={"console_scripts": [settings["console_scripts"]]},
)
