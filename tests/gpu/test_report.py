"""`make gpu` keeps what it has seen whatever fails, and says so with its exit code."""

import importlib.util
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("gpu_report", Path(__file__).with_name("report.py"))
report = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(report)


@pytest.mark.parametrize("broken", [None, "benchmark", "pytest"])
def test_a_part_that_fails_leaves_the_others_alone(broken, tmp_path, monkeypatch, capsys):
    seen = []

    def run(words, log, seconds):
        seen.append((words, log.name, seconds))
        return int(broken is not None and broken in " ".join(words) and "page" not in words)

    monkeypatch.setattr(report, "run", run)
    assert report.main(["--folder", str(tmp_path), "--seconds", "100"]) == int(broken is not None)
    assert [name for _, name, _ in seen] == ["gpu_figures.log", "gpu_tests.log", "gpu_page.log"]
    assert seen[0][2] == 80 and 90 < seen[1][2] <= 100  # the tests have what is left
    assert ("nothing failed" in capsys.readouterr().out) == (broken is None)


def test_the_package_is_found_without_being_installed(tmp_path):
    """Also its scripts, which are another folder of the repository."""
    code = "import hf_gdkd, hf_gdkd.scripts as s, hf_gdkd.scripts.benchmark as b; print(hf_gdkd.__file__, b.ROOT)"
    assert report.run(["-c", code], tmp_path / "log", 60) == 0
    package, root = (tmp_path / "log").read_text().split()
    assert not Path(package).exists() and Path(root) == report.ROOT


def test_a_command_that_takes_too_long_is_ended_and_its_output_kept(tmp_path):
    code = "import time; print('begun'); time.sleep(60)"
    assert report.run(["-c", code], tmp_path / "log", 3.0) == 124
    assert (tmp_path / "log").read_text() == "begun\n"
