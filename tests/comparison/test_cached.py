"""Comparisons of a teacher's cache with the live teacher: the rows' epochs and folders, the chapter of the report."""

from itertools import groupby
from pathlib import Path

import pytest
import yaml
from fabricated_runs import Runs

from hf_gdkd.comparison.cached import COSTS, epochs, loss_of, time
from hf_gdkd.comparison.results import Section
from hf_gdkd.comparison.spec import Comparison
from hf_gdkd.comparison.tables import write_chapter
from hf_gdkd.errors import InputError
from hf_gdkd.scripts import compare

SPEC = {
    "dataset": "digits",
    "teacher": {"student": "scripts/demo/teacher", "validation_rows": 100},
    "students": {"cnn": {"student": "scripts/demo/cnn", "num_train_epochs": 6}},
    "validation": {"validation_rows": 100},
    "test_split": "test",
    "trials": 1,
    "seeds": [0, 1],
    "tuning_seed": 100,
    "losses": {
        "ce": [{"label_smoothing_factor": 0.1}],
        "kd": [{"temperature": 2}],
        "kd, 2 views": [{"loss": "kd", "teacher_cache": "new", "cache_views": 2, "temperature": 4}],
        "kd, full": [{"loss": "kd", "teacher_cache": "full", "cache_views": 2, "num_train_epochs": 9}],
    },
}


def read(tmp_path, **change):
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump(SPEC | change))
    return Comparison.read(path, tmp_path / "runs")


@pytest.mark.parametrize("name", ["cache-fashion-mnist", "cache-glyphs"])
def test_rows_of_the_same_time_have_as_many_epochs_as_fit(name):
    comparison = Comparison.read(Path(f"scripts/compare/{name}.yaml"), Path("runs/compare"))
    section = Section(comparison.name, "", comparison.rows(), [], None, comparison.students)
    budget = COSTS["live"] * 24
    for row in section.rows:
        number = epochs(section, row)
        if row.loss == "ce" or "same time" in row.loss:
            assert time(row, number) <= budget < time(row, number + 1), row.loss
        else:
            assert number == 24, row.loss
        assert row.settings.get("teacher_cache") == (
            "full" if "recorded before" in row.loss else "new" if "views" in row.loss else None
        )
    options = {  # rows of one loss differ in nothing else
        (loss_of(row), str({key: row.settings[key] for key in row.settings if key in ("temperature", "k", "w2")}))
        for row in section.rows
    }
    assert len(options) == 3


def test_rows_with_the_same_images_share_a_cache(tmp_path):
    jobs = [job.flags for job in read(tmp_path).finals() if "teacher_cache" in job.flags]
    folders = {seed: {flags["teacher_cache"][0] for flags in each} for seed, each in groupby(jobs, lambda f: f["seed"])}
    assert [len(each) for each in folders.values()] == [1, 1] and folders[0] != folders[1]
    other = [job.flags for job in read(tmp_path, training={"flip": True}).finals() if "teacher_cache" in job.flags]
    assert not {flags["teacher_cache"][0] for flags in other} & set.union(*folders.values())


@pytest.mark.parametrize(
    "change, says",
    [
        ({"kd, 2 views": [{"loss": "kd", "teacher_cache": "runs/cache"}]}, "is 'runs/cache': write new or full"),
        ({"gdkd, 2 views": [{"loss": "gdkd", "teacher_cache": "new"}]}, "losses lacks gdkd with a live teacher"),
        ({name: each * 2 for name, each in SPEC["losses"].items()}, "with a teacher_cache nothing is tuned: write 1"),
    ],
)
def test_a_faulty_comparison_is_refused(tmp_path, change, says):
    trials = max(map(len, change.values()))
    with pytest.raises(InputError, match=says):
        read(tmp_path, losses=SPEC["losses"] | change, trials=trials)


def test_the_chapter_is_written_and_the_others_stay(tmp_path, monkeypatch):
    runs = Runs(monkeypatch)
    read(tmp_path)
    report = tmp_path / "RESULTS.md"
    write_chapter(report, "Results", "As measured.")
    for _ in range(2):  # again: in its own place
        compare.main([str(tmp_path / "a.yaml"), "--output_dir", str(tmp_path / "runs"), "--report", str(report)])
    text = report.read_text()
    assert text.startswith("# Results\n\nAs measured.\n\n# The teacher's cache\n\nWritten by ")
    assert text.count("# The teacher's cache") == 1
    for line in (
        "The teacher (12 parameters) has 70.00 % (top-1 accuracy) on the test split.",
        "| ce | - | 6 | 6.0 | 69.05 ± 0.07 | - | - |",
        "| kd | - | 6 | 11.5 | 72.05 ± 0.07 | - | +3.00 [+3.00, +3.00] |",
        "| kd, 2 views | 2 | 6 | 8.1 | 70.05 ± 0.07 | -2.00 [-2.00, -2.00] | +1.00 [+1.00, +1.00] |",
        "| kd, full | 2 | 9 | 9.5 | 70.05 ± 0.07 | -2.00 [-2.00, -2.00] | +1.00 [+1.00, +1.00] |",
        "- Beside kd with the live teacher: above it: none; no difference seen to it: none; below it: kd, 2 views, kd",
    ):
        assert line in text, line
    kinds = [kind for kind, _ in runs.seen]  # a run is tested as it ends, so that an interruption leaves whole results
    assert kinds == ["train", *["train", "test"] * 8, "test"]
    trained = [flags for kind, flags in runs.seen if kind == "train"]
    assert len(trained) == 1 + 4 * 2 and all(flags["eval_strategy"] == "no" for flags in trained)
