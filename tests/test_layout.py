"""The wings import downwards only, each says its duty, and importing the losses imports torch alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hf_gdkd

PACKAGE = Path(hf_gdkd.__file__).parent
WINGS = "errors hub_client losses models data training evaluation publishing tasks commands comparison scripts".split()
PUBLIC = ("GDKDConfig", "GDKDTrainer", "Teacher", "build_loss", "__version__")
FOLDERS = {"scripts": PACKAGE.parent / "scripts"}


def files_of(wing):
    folder = FOLDERS.get(wing, PACKAGE / wing)
    return sorted([*folder.rglob("*.py"), *folder.rglob("*.pyi")]) if folder.is_dir() else [PACKAGE / f"{wing}.py"]


def imports_of(path, package):
    """The modules of hf_gdkd that a file imports, as parts of their names: ("models", "loading")."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = (*base, *(node.module or "").split(".")) if node.module else base
            names = [(*module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
        else:
            continue
        yield from (name[1:] for name in names if name[0] == "hf_gdkd")


def package_of(wing, path):
    if wing in FOLDERS:
        return ("hf_gdkd", wing)
    return ("hf_gdkd", *path.relative_to(PACKAGE).parent.parts)


def test_every_file_is_in_a_wing():
    assert {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()} == {
        "__init__",
        *(wing for wing in WINGS if wing not in FOLDERS),
    }


@pytest.mark.parametrize("wing", WINGS)
def test_wings_import_downwards_only(wing):
    below = {*WINGS[: WINGS.index(wing) + 1], "model_cards", *PUBLIC}
    for path in files_of(wing):
        for module in imports_of(path, package_of(wing, path)):
            assert module[0] in below, f"{path} imports {'.'.join(module)}"


@pytest.mark.parametrize("wing", [wing for wing in WINGS if (PACKAGE / wing).is_dir()])
def test_no_circle_inside_a_wing(wing):
    """Modules of a wing can be put in an order in which each imports earlier ones only."""
    names = {path.stem for path in files_of(wing)} - {"__init__"}
    waiting = {
        path.stem: {m[1] for m in imports_of(path, package_of(wing, path)) if len(m) > 1 and m[0] == wing} & names
        for path in files_of(wing)
        if path.suffix == ".py" and path.stem != "__init__" and path.parent == PACKAGE / wing
    }
    while waiting:
        free = [name for name, needed in waiting.items() if not needed & waiting.keys() - {name}]
        assert free, f"a circle among {', '.join(sorted(waiting))}"
        for name in free:
            del waiting[name]


@pytest.mark.parametrize("wing", [wing for wing in WINGS if (PACKAGE / wing).is_dir()])
def test_a_wing_says_its_duty_in_one_line(wing):
    docstring = ast.get_docstring(ast.parse((PACKAGE / wing / "__init__.py").read_text(encoding="utf-8")))
    assert docstring and len(docstring.splitlines()[0]) > 20


def test_no_file_is_over_300_lines():
    folders = (PACKAGE, FOLDERS["scripts"])
    long = {path: len(path.read_text(encoding="utf-8").splitlines()) for f in folders for path in f.rglob("*.py")}
    assert {str(path): n for path, n in long.items() if n > 300} == {}


def test_losses_import_neither_transformers_nor_datasets():
    code = "import sys, hf_gdkd.losses; from hf_gdkd import build_loss; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True).stdout.split()
    assert "torch" in modules
    assert not {"transformers", "datasets", "timm", "torchvision"} & set(modules)


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, hf_gdkd; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True).stdout.split()
    assert not {"torch", "transformers", "datasets", "timm", "torchvision"} & set(modules)
