"""hf-gdkd cache and --teacher_cache: logits recorded ahead or in training, and refused where they do not fit."""

import errno
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load

from hf_gdkd.commands.arguments.parsing import parse
from hf_gdkd.commands.cache_actions import in_bytes
from hf_gdkd.commands.teachers import check_storage, set_views
from hf_gdkd.data.loading import load_data
from hf_gdkd.data.teacher_cache import TeacherCache
from hf_gdkd.errors import InputError
from hf_gdkd.scripts import cache, distill
from hf_gdkd.training.teacher import Teacher

DEMO = Path(__file__).parents[2] / "scripts/demo"
QUICK = "--dataset digits --use_cpu --disable_tqdm true --report_to none --save_strategy no --eval_strategy no".split()
QUICK += "--train_rows 64 --per_device_train_batch_size 32 --allow_weak_teacher".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a teacher, and a cache of two views of it that was recorded ahead."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.getcwd()
    os.chdir(folder)
    words = ["--student", str(DEMO / "cnn"), "--student_init", "random", "--loss", "ce", "--max_steps", "2"]
    distill.main([*words, *QUICK, "--output_dir", "teacher"])
    cache.main(["record", "ahead", "--teacher", "teacher", "--cache_views", "2", *QUICK])
    os.chdir(before)
    return folder


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)


def train(output, *more):
    words = ["--teacher", "teacher", "--student", str(DEMO / "vit"), "--student_init", "random"]
    return distill.main([*words, "--num_train_epochs", "4", *QUICK, "--output_dir", output, *more])


def weights(run):
    return Path(run, "model.safetensors").read_bytes()


def test_recorded_ahead_or_in_training_is_the_same(here, monkeypatch):
    train("recording", "--teacher_cache", "made", "--cache_views", "2")
    monkeypatch.setattr(Teacher, "load", lambda *args, **kwargs: pytest.fail("the teacher is loaded"))
    metrics = train("again", "--teacher_cache", "made")  # the number of views is the folder's
    assert weights("again") == weights("recording")
    assert metrics["teachers"]["teacher"]["parameters"] > 0 and 0 <= metrics["agreement"] <= 1
    for name in ("view-0000.logits", "view-0001.logits", "cache.json"):
        assert Path("made", name).read_bytes() == Path("ahead", name).read_bytes()


def test_float32_is_live_training(here):
    """To the last bit but for the convolutions of this teacher, which round an image by its place in the batch."""
    train("live", "--cache_views", "2")
    train("exact", "--teacher_cache", "float32", "--cache_views", "2", "--cache_dtype", "float32")
    torch.testing.assert_close(load(weights("exact")), load(weights("live")), rtol=1e-4, atol=1e-6)


def test_without_labels(here):
    options = ["--label_free", "--loss", "kd", "--cache_dtype", "top-4", "--teacher_cache", "free"]
    one, two = train("free-1", *options), train("free-2", *options)
    assert one["agreement"] == two["agreement"] and weights("free-1") == weights("free-2")
    assert cache.verify("free", 100) == (pytest.approx(0, abs=0.02), pytest.approx(1, abs=1e-4))


def test_verify_finds_what_was_damaged(here, capsys):
    shutil.copytree("ahead", "damaged")
    assert cache.verify("damaged", 200) == (pytest.approx(0, abs=0.01), pytest.approx(1, abs=1e-4))
    data = bytearray(Path("damaged/view-0000.logits").read_bytes())
    data = bytes(byte ^ 1 for byte in data)
    Path("damaged/view-0000.logits").write_bytes(data)
    capsys.readouterr()
    cache.verify("damaged", 200)
    assert re.search(r"; 64 damaged, which the next run replaces", capsys.readouterr().out)


def test_record_goes_on_where_it_stopped(here, monkeypatch):
    shutil.copytree("ahead", "stopped")
    sums = bytearray(Path("stopped/view-0001.crc32").read_bytes())
    kept = bytes(sums)
    sums[400:] = bytes(len(sums) - 400)
    Path("stopped/view-0001.crc32").write_bytes(sums)
    cache.main(["record", "stopped", "--teacher", "teacher", "--cache_views", "2", *QUICK])
    assert Path("stopped/view-0001.crc32").read_bytes() == kept


def test_estimate(here, capsys):
    cache.main(["estimate", "--teacher", "teacher", "--cache_views", "3", "--num_train_epochs", "2", *QUICK])
    said = capsys.readouterr().out
    assert "3 views of 64 images, 10 classes, float16: 4.61 kB." in said and not Path("teacher-cache").exists()
    assert re.search(r"takes (\S+) seconds for one view .*\n.* saves \1 seconds in each epoch from epoch 4 on", said)
    assert "it pays from student 2 on, if each trains for 2 epochs." in said


@pytest.mark.parametrize(
    ("images", "classes", "views", "dtype", "size"),
    [
        (1_281_167, 1000, 50, "float16", "128 GB"),
        (1_281_167, 1000, 50, "int8", "64.8 GB"),
        (1_281_167, 1000, 50, "top-10", "4.36 GB"),
        (14_197_122, 21841, 1, "float16", "620 GB"),
        (14_197_122, 21841, 50, "float16", "31,011 GB"),
    ],
)
def test_sizes_on_paper(tmp_path, images, classes, views, dtype, size):
    """The table of the documentation."""
    on_paper = TeacherCache(tmp_path, {}, rows=images, classes=classes, views=views, dtype=dtype)
    assert in_bytes(on_paper.size(images)) == size


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--seed", "1"], "recorded with seed 42, and this run has 1"),
        (["--crop_scale", "0.9"], "augmentation.crop_scale 0.6, and this run has 0.9"),
        (["--cache_dtype", "int8"], 'dtype "float16"'),
        (["--cache_views", "3"], "views 2, and this run has 3"),
        (["--random_erasing", "0.5"], "augmentation.random_erasing 0"),
        (["--train_split", "test", "--eval_split", "train"], 'dataset.split "train", and this run has "test"'),
    ],
)
def test_a_cache_of_something_else_is_refused(here, more, said):
    with pytest.raises(InputError, match="the teacher cache ahead was recorded") as error:
        train("refused", "--teacher_cache", "ahead", *more)
    assert said in str(error.value)


def test_a_cache_that_a_run_recorded_is_verified_from_a_renamed_folder_too(here, monkeypatch, capsys):
    """Its settings hold nothing of the student's run; the teacher's folder is known by its contents."""
    shutil.copytree("teacher", "renamed", dirs_exist_ok=True)
    train(
        "first", "--teacher_cache", "by-run", "--cache_views", "2", "--learning_rate", "0.1", "--num_train_epochs", "2"
    )
    assert cache.verify("by-run", 200) == (pytest.approx(0, abs=0.01), pytest.approx(1, abs=1e-4))
    assert "128 random rows computed again" in capsys.readouterr().out
    settings = yaml.safe_load(Path("by-run/recipe.yaml").read_text())
    assert settings == yaml.safe_load(Path("ahead/recipe.yaml").read_text()) and settings["teacher"] == ["teacher"]
    assert not {"student", "loss", "learning_rate", "teacher_revision"} & settings.keys()
    monkeypatch.setattr(Teacher, "load", lambda *args, **kwargs: pytest.fail("the teacher is loaded"))
    train("renamed-run", "--teacher_cache", "by-run", "--teacher", "renamed")


def test_caches_of_two_teachers_are_verified_alone(here):
    shutil.copytree("teacher", "twin", dirs_exist_ok=True)
    train("both", "--num_train_epochs", "1", "--teacher_cache", "one", "two", "--teacher", "twin", "teacher")
    for folder, teacher in (("one", "twin"), ("two", "teacher")):
        assert cache.verify(folder, 20) == (pytest.approx(0, abs=0.01), pytest.approx(1, abs=1e-4))
        assert yaml.safe_load(Path(folder, "recipe.yaml").read_text())["teacher"] == [teacher]


def test_a_local_teacher_has_no_revision(tmp_path):
    of = [
        "--student",
        str(DEMO / "vit"),
        *QUICK,
        "--teacher",
        str(tmp_path),
        "me/vit",
        "--teacher_revision",
        "none",
        "abc",
    ]
    assert parse(of)[0].teachers() == [(str(tmp_path), None), ("me/vit", "abc")]


def test_another_teacher_is_refused(here):
    shutil.copytree("teacher", "other", dirs_exist_ok=True)
    (Path("other") / "model.safetensors").write_bytes(weights("teacher") + b" ")
    with pytest.raises(InputError, match=r"recorded with teacher\.weights "):
        train("refused", "--teacher_cache", "ahead", "--teacher", "other")


def test_another_data_set_is_refused(here):
    """Of the same size and classes, with another label in one row."""
    data = load_data("digits").train_split_rows.remove_columns("sample_id")
    labels, feature = data["labels"][:], data.features["labels"]
    for name, first in (("same", labels[0]), ("changed", (labels[0] + 1) % 10)):
        Path(name).mkdir()
        rows = data.remove_columns("labels").add_column("label", [first, *labels[1:]], feature=feature)
        rows.to_parquet(f"{name}/train.parquet")
    options = ["--eval_split", "train", "--crop_scale", "0.6", "--flip", "false", "--cache_views", "2"]
    cache.main(["record", "of-same", "--teacher", "teacher", *QUICK, "--dataset", "same", *options])
    with pytest.raises(InputError, match=r"recorded with dataset\.contents "):
        train("refused", "--teacher_cache", "of-same", "--dataset", "changed", *options)


def test_images_that_are_mixed_at_another_size_are_others(here):
    """The largest teacher's size is that of the mixed image, which all of them see."""
    shutil.copytree("teacher", "large")
    processor = json.loads(Path("large/preprocessor_config.json").read_text())
    processor["size"] = {"height": 48, "width": 48}
    Path("large/preprocessor_config.json").write_text(json.dumps(processor))
    cache.main(["record", "mixed", "--teacher", "teacher", "--cache_views", "1", "--mixup_alpha", "0.2", *QUICK])
    options = ["--mixup_alpha", "0.2", "--cache_views", "1", "--teacher_cache", "mixed", "of-large"]
    with pytest.raises(InputError, match=r"augmentation\.mixed_at \[32, 32\], and this run has \[48, 48\]"):
        train("refused", *options, "--teacher", "teacher", "large")


def test_a_full_disk(here, monkeypatch, caplog):
    """The run ends well and says once that it records no more; the next one records the rest."""
    write, left = os.pwrite, [60]

    def full(*args):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        train("full", "--teacher_cache", "on-full-disk", "--cache_views", "2")
    said = [record.getMessage() for record in caplog.records if "no longer recorded" in record.getMessage()]
    assert len(said) == 1 and "on-full-disk: No space left on device" in said[0]
    assert sum(TeacherCache.open("on-full-disk").recorded(view).sum() for view in range(2)) == 30
    train("after", "--teacher_cache", "on-full-disk")
    assert weights("after") == weights("full")
    for name in ("view-0000.logits", "view-0001.logits", "view-0000.crc32", "view-0001.crc32"):
        assert Path("on-full-disk", name).read_bytes() == Path("ahead", name).read_bytes()


def checked(*more, rows=64):
    script, args = parse(["--student", str(DEMO / "vit"), "--teacher", "x/y", *QUICK, *more])
    check_storage(script, args)
    set_views(script, args, rows)
    return script.cache_views


def test_the_number_of_views(tmp_path):
    folder = ["--teacher_cache", str(tmp_path)]
    assert checked() is None
    assert checked(*folder, "--num_train_epochs", "7.5") == 8
    assert checked(*folder, "--num_train_epochs", "300") == 50
    assert checked(*folder, "--max_steps", "5") == 3  # epochs of two steps
    assert checked(*folder, "--num_train_epochs", "5", "--repeated_augmentation", "3") == 15


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--cache_views", "11"], "cache_views is 11, and this run sees 10 views of an image: use at most 10."),
        (["--cache_views", "0"], "cache_views is 0"),
        (["--cache_dtype", "top-5"], "keeps the most probable classes and the mass of the others"),
        (["--cache_dtype", "top-5", "--loss", "kd", "--temperature", "2"], "enough for kd at temperature 1"),
        (["--loss", "fitnet"], "loss fitnet compares features, and a teacher cache holds logits"),
    ],
)
def test_what_does_not_go_with_a_cache(tmp_path, more, said):
    with pytest.raises(InputError) as error:
        checked("--teacher_cache", str(tmp_path), *more)
    assert said in str(error.value)


def test_a_folder_that_cannot_be_written(here):
    Path("file").touch()
    with pytest.raises(InputError, match="cannot be recorded in file/cache: Not a directory"):
        train("refused", "--teacher_cache", "file/cache")


def test_a_folder_without_permission_is_read_but_not_recorded_in(here, monkeypatch):
    shutil.copytree("ahead", "read-only")
    shutil.copytree("ahead", "partial")
    Path("partial/view-0001.crc32").unlink()

    def refused(path, *args):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "touch", refused)
    monkeypatch.setattr(os, "pwrite", refused)
    train("from-read-only", "--teacher_cache", "read-only", "--num_train_epochs", "1")
    with pytest.raises(InputError, match="cannot be recorded in partial: Permission denied"):
        train("refused", "--teacher_cache", "partial")


def test_a_settings_file_cannot_name_a_cache(here):
    Path("settings.yaml").write_text("teacher_cache: [somewhere]\n")
    with pytest.raises(InputError, match="teacher_cache, which only a flag may"):
        train("refused", "--config", "settings.yaml")
