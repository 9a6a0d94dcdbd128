"""`make gpu` writes its page whatever fails, and says so with its exit code."""

import importlib.util
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("gpu_report", Path(__file__).with_name("report.py"))


@pytest.mark.parametrize("code", [0, 1])
def test_the_page_holds_what_each_command_printed(code, tmp_path, monkeypatch):
    report = importlib.util.module_from_spec(SPEC)
    SPEC.loader.exec_module(report)
    monkeypatch.setattr(report, "run", lambda words: (code, f"dots\nPASSED {words[-1]}\nE   why\n1 passed"))
    assert report.main(["--output", str(tmp_path / "page.md")]) == code
    page = (tmp_path / "page.md").read_text()
    assert "PASSED --color=no\nE   why\n1 passed\n```" in page and page.count("dots") == 2
    assert page.count(f"exit code {code}, ") == 3 and "| commit |" in page
