"""The benchmark: what it times is what a user runs, its figures are kept as they come, and its page shows them."""

import time

import pytest
import torch
from tiny_training import CLASSES, SIZE, make, vit

from hf_gdkd.scripts.benchmarks import gpu, page, steps
from hf_gdkd.scripts.benchmarks.rows import Rows, read


class Student(torch.nn.Module):
    """Notes whether each forward pass ran under autocast."""

    def __init__(self):
        super().__init__()
        self.model, self.seen = make(vit), []

    def forward(self, x):
        self.seen.append(torch.is_autocast_enabled("cpu"))
        return self.model(x).logits


def test_every_trainer_prepares_the_student_anew():
    """Accelerate leaves alone what it has prepared once: the second run would have gone on in float32."""
    batch = {"pixel_values": torch.randn(3, 3, SIZE, SIZE), "labels": torch.randint(CLASSES, (3,))}
    job = steps.Job(Student(), Student().eval(), batch, steps=2, warm_up=1, bf16=True)
    for run in (steps.by_trainer, steps.by_trainer, steps.by_bare_trainer):
        job.student.seen.clear()
        assert len(run(job, *["gdkd"] * (run is steps.by_trainer))) == 2
        assert job.student.seen == [True] * 3
    job.bf16 = False
    job.student.seen.clear()
    assert len(steps.by_hand(job, "gdkd")) == 2 and job.student.seen == [False] * 3


def test_cached_logits_take_the_place_of_the_teacher():
    batch = {"pixel_values": torch.randn(3, 3, SIZE, SIZE), "labels": torch.randint(CLASSES, (3,))}
    job = steps.Job(Student(), Student().eval(), batch, steps=2, warm_up=1)
    steps.by_trainer(job, "gdkd", cached=True)
    assert len(job.teacher.seen) == 1 and len(job.student.seen) == 3


def test_a_check_that_fails_or_hangs_leaves_the_others_alone(tmp_path, monkeypatch, capsys):
    def checks(bench):
        yield "broken", 9, lambda: 1 / 0
        yield "slow", 0.2, lambda: time.sleep(9)
        yield "good", 9, lambda: bench.rows.add("losses", "gdkd", [1.0, 2.0, 3.0], against=("kd", [1.0, 1.0, 1.0]))

    monkeypatch.setattr(gpu.Bench, "checks", checks)
    assert gpu.measure(tmp_path / "gpu.csv", seconds=60) == ["broken", "slow"]
    (row,) = read(tmp_path / "gpu.csv")
    assert (row["name"], row["p50"], row["ratio_p50"], row["yardstick"]) == ("gdkd", "2", "2", "kd")
    assert torch.__version__.startswith(row["torch"]) and "took more than 0 s" in capsys.readouterr().out
    assert gpu.measure(tmp_path / "gpu.csv", seconds=0) == ["broken", "slow", "good"]


@pytest.mark.parametrize("where", ["cpu", "gpu"])
def test_the_page_shows_what_was_measured_and_says_what_was_not(where, tmp_path):
    Rows(tmp_path / f"{where}.csv").add("steps", "GDKDTrainer kd", [1.0, 2.0, 3.0], unit="images/s", peak_mb=7.0)
    (tmp_path / "gpu_tests.log").write_text("PASSED tests/a\nnoise\n== 1 passed ==\n")
    page.write(tmp_path / "page.md", tmp_path)
    text = (tmp_path / "page.md").read_text()
    assert "| GDKDTrainer kd | 2 (1.4 to 2.6) images/s | 7 |" in text
    assert text.count("Not measured") == 1 and "PASSED tests/a\n== 1 passed ==" in text and "noise" not in text
