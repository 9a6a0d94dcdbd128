"""The sdist and the wheel that `python -m build` makes work in a new environment, from an empty folder.

The new environment sees the libraries of this one through a .pth file, and of hf_gdkd only what the wheel installs.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "runs", "build", "dist", "site", "*.egg-info", "__pycache__")
pytestmark = pytest.mark.slow


def call(*words: str | Path, cwd: Path) -> str:
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    env |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*map(str, words)], cwd=cwd, env=env, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """The folder with the sdist, and the wheel that was made of it."""
    source = tmp_path_factory.mktemp("source") / "tree"
    shutil.copytree(ROOT, source, ignore=LEFT_OUT)
    call(sys.executable, "-m", "build", "--no-isolation", source, cwd=source.parent)
    return source / "dist"


@pytest.fixture(scope="module")
def installed(dist, tmp_path_factory) -> Path:
    """The bin/ of an environment in which the wheel is installed."""
    environment = tmp_path_factory.mktemp("environment") / "venv"
    call(sys.executable, "-m", "venv", "--without-pip", environment, cwd=dist)
    python = environment / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    call(*pip, next(dist.glob("*.whl")), cwd=dist)
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    packages = next(environment.glob("lib/*/site-packages"))
    (packages / "libraries.pth").write_text("\n".join(libraries))
    return environment / "bin"


def test_the_wheel_holds_every_file_of_the_packages(dist):
    held = {name for name in zipfile.ZipFile(next(dist.glob("*.whl"))).namelist() if "dist-info" not in name}
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "hf_gdkd").rglob("*") if path.is_file()}
    for folder in ("scripts", "model_cards"):
        files = [path for path in (ROOT / folder).rglob("*") if path.is_file()]
        expected |= {f"hf_gdkd/{path.relative_to(ROOT).as_posix()}" for path in files}
    assert held == {name for name in expected if "__pycache__" not in name}


def test_the_sdist_holds_what_builds_and_tests_the_package(dist):
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        held = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {"pyproject.toml", "setup.cfg", "LICENSE", "Makefile", "CHANGELOG.md", "docs", "tests/conftest.py"} <= held


def test_a_student_is_trained_from_an_empty_folder(installed, tmp_path):
    where = "import hf_gdkd.scripts.distill as module; print(module.__file__)"
    assert Path(call(installed / "python", "-c", where, cwd=tmp_path).strip()).is_relative_to(installed.parent)
    words = "--student cifar/resnet8 --dataset digits --loss ce --max_steps 2 --use_cpu --eval_strategy no".split()
    call(installed / "hf-gdkd", "distill", *words, "--output_dir", "student", cwd=tmp_path)
    assert {"README.md", "model.safetensors", "recipe.yaml"} <= {path.name for path in (tmp_path / "student").iterdir()}


def test_the_demo_runs_from_an_empty_folder(installed, tmp_path):
    """Its first model, at least: the demo's own test runs it all."""
    code = (
        "from pathlib import Path; from hf_gdkd.scripts import demo; classified = demo.DEMOS['image-classification']; "
        "print(demo.train(classified, Path('demo'), 'teacher', 'ce', '0.05')['parameters'])"
    )
    assert call(installed / "python", "-c", code, cwd=tmp_path).splitlines()[-1] == "395554"
