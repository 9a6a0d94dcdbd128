"""scripts/distill.py on a folder that holds a run: what it refuses, and that going on changes nothing."""

from pathlib import Path

import pytest

from hf_gdkd.commands.running import run
from hf_gdkd.scripts.distill import main

DEMO = Path(__file__).parents[2] / "scripts/demo"


def test_resuming(tmp_path, capsys):
    """Of a finished run, as a job does that was killed after its last checkpoint, and with other settings."""
    quick = ["--dataset", "digits", "--student_init", "random", "--learning_rate", "3e-3", "--num_train_epochs", "1"]
    quick += ["--disable_tqdm", "true", "--use_cpu", "--report_to", "none"]
    teacher = str(tmp_path / "teacher")
    main([*quick, "--student", str(DEMO / "teacher"), "--loss", "ce", "--output_dir", teacher])
    words = [*quick, "--student", str(DEMO / "cnn"), "--teacher", teacher, "--teacher_revision", "a" * 40]
    words += ["--allow_weak_teacher", "--output_dir", str(tmp_path / "student"), "--resume_from_checkpoint", "last"]

    main([*words, "--profile"])
    first, said = (tmp_path / "student/model.safetensors").read_bytes(), capsys.readouterr().out
    assert "holds no complete checkpoint: the run begins anew" in said
    parts = [line.rpartition(" ")[0].strip() for line in said[said.index("start-up") :].splitlines()[1:8]]
    assert parts == ["imports", "arguments", "data", "models", "trainer", "first step", "in all"]
    assert "profile" not in (tmp_path / "student/recipe.yaml").read_text()
    main(words)
    assert (tmp_path / "student/model.safetensors").read_bytes() == first

    images = digits_in_a_folder(tmp_path / "images")
    changes = {"loss": ["gdkd", "kd"], "teacher_revision": ["a" * 40, "b" * 40], "dataset": ["digits", images]}
    for name, (then, now) in changes.items():
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            run(lambda now=now, name=name: main([*words, f"--{name}", now]))
        said = capsys.readouterr().err.splitlines()[-1]
        assert caught.value.code == 2
        assert said.startswith(f"error: this run began with {name} ") and then in said and now in said


def digits_in_a_folder(folder: Path) -> str:
    """The digits as images, one sub-folder a class and split."""
    from hf_gdkd.data.sources import load_digits

    for split, rows in load_digits().items():
        for i, row in enumerate(rows.select(range(50))):
            (folder / split / str(row["label"])).mkdir(parents=True, exist_ok=True)
            row["image"].save(folder / split / str(row["label"]) / f"{i}.png")
    return str(folder)
