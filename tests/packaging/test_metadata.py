"""setup.cfg says what the code needs: every package of ours, every library that is imported, one Python version."""

import ast
import re
import sys
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SETUP = ConfigParser()
SETUP.read(ROOT / "setup.cfg")
SOURCES = [path for name in ("hf_gdkd", "scripts", "model_cards") for path in (ROOT / name).rglob("*.py")]


def names(requirements: str) -> set[str]:
    """The distributions that a list of requirements names, in their normal form."""
    lines = [line for line in requirements.splitlines() if line and not line.startswith("#")]
    return {normal(re.match(r"[\w.-]+", line)[0]) for line in lines}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported() -> set[str]:
    """The distributions whose modules our code imports, anywhere in a file."""
    modules = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules.add(node.module.split(".")[0])
    ours = {"hf_gdkd", *(path.stem for path in (ROOT / "scripts").glob("*.py"))}
    owners = packages_distributions()
    libraries = (modules - set(sys.stdlib_module_names) - ours) | (modules & owners.keys() & {"evaluate"})
    return {normal(owners.get(module, [module])[0]) for module in libraries}


INSTALLED = names(SETUP["options"]["install_requires"])
EXTRAS = {name for requirements in SETUP["options.extras_require"].values() for name in names(requirements)}


def test_every_library_that_is_imported_is_declared():
    assert imported() <= INSTALLED | EXTRAS


def test_every_library_that_is_declared_is_imported():
    assert imported() >= INSTALLED


@pytest.mark.parametrize("section", ["options", "options.extras_require"])
def test_every_requirement_has_its_reason(section):
    """A comment stands above each requirement (ConfigParser drops comments: the lines are read here)."""
    lines = (ROOT / "setup.cfg").read_text().split(f"[{section}]")[1].split("\n[")[0].splitlines()
    for above, line in pairwise(lines):
        if re.match(r"    [\w\[\]]+[<>=]=", line):
            assert above.startswith("    #") or line.strip().startswith(("setuptools", "wheel")), line


def test_every_package_and_data_file_of_ours_is_listed():
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in SOURCES if path.name == "__init__.py"}
    found = {name if name.startswith("hf_gdkd") else f"hf_gdkd.{name}" for name in found}
    assert set(SETUP["options"]["packages"].split()) == found


def test_one_python_version_everywhere():
    version = SETUP["options"]["python_requires"].removeprefix(">=")
    assert f'target-version = "py{version.replace(".", "")}"' in (ROOT / "pyproject.toml").read_text()
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        assert set(re.findall(r"Python (3\.\d+)", page.read_text())) <= {version}, page
    assert f"Python {version}" in (ROOT / "README.md").read_text()
    assert f"Programming Language :: Python :: {version}" in SETUP["metadata"]["classifiers"]
