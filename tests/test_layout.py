"""Imports point one way, and importing the losses imports torch alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hf_gdkd

PACKAGE = Path(hf_gdkd.__file__).parent
PACKAGES = ("losses", "networks")
ORDER = """errors connection losses networks recipes config labels models images data augment views streams teacher
    metrics evaluation report reproduction results tables cli comparison assembly checkpoints hub ema engines finite
    workers features projections durable trainer""".split()


def test_every_module_has_its_place():
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"} | {*PACKAGES} == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_imports_point_up(name):
    files = list((PACKAGE / name).glob("*.py")) if name in PACKAGES else [PACKAGE / f"{name}.py"]
    level = 2 if name in PACKAGES else 1
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    used = {node.module.split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom) and node.level == level}
    assert used <= set(ORDER[: ORDER.index(name)])


def test_losses_import_neither_transformers_nor_datasets():
    code = "import sys, hf_gdkd.losses; from hf_gdkd import build_loss; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True).stdout.split()
    assert "torch" in modules
    assert not {"transformers", "datasets", "timm", "torchvision"} & set(modules)
