"""A run that reads its teacher from a cache ends like one that runs it: recorded before, or in the run itself."""

import errno
import logging

import pytest
import torch
from tiny_training import NormedTeacher, StopAt, config, make, vit, weights
from transformers import ViTImageProcessor

from hf_gdkd import GDKDTrainer, Teacher
from hf_gdkd.data import Augmented, TrainTransform, View, collate, load_data
from hf_gdkd.data.augment import Mix
from hf_gdkd.data.teacher_cache import TeacherCache
from hf_gdkd.errors import InputError
from hf_gdkd.training.cached_teacher import CachedTeacher

VIEWS, CLASSES = 2, 10
ROWS = load_data("digits").train.select(range(45))
LARGE, SMALL = (View(ViTImageProcessor(size={"height": side, "width": side})) for side in (12, 8))


class Counting(NormedTeacher):
    """A teacher for 12 x 12 pixels."""

    def __init__(self):
        super().__init__(CLASSES)
        self.head = torch.nn.Linear(3 * 12 * 12, CLASSES)


def run(folder, cache=None, *, resume=None, callbacks=None, mix=False, accumulate=1, workers=0, loss="gdkd", **options):
    """A trainer after four epochs, and its teacher."""
    module = make(Counting, 1)
    teacher = Teacher(module)
    caches = {}
    if cache is not None:
        caches = {"teacher_pixel_values": cache}
        teacher = CachedTeacher(cache, lambda: Teacher(module))
    data = Augmented(
        ROWS, TrainTransform(SMALL, {"teacher_pixel_values": LARGE}, crop_scale=0.5), seed=7, views=VIEWS,
        mix=Mix(CLASSES, (12, 12), mixup_alpha=0.4, cutmix_alpha=1.0) if mix else None, caches=caches,
    )  # fmt: skip
    args = config(
        folder, loss, num_train_epochs=4, per_device_train_batch_size=12 // accumulate, dataloader_num_workers=workers,
        gradient_accumulation_steps=accumulate, **options,
    )  # fmt: skip
    student = make(lambda: vit(CLASSES))
    trainer = GDKDTrainer(student, teacher, args, train_dataset=data, data_collator=collate, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    return trainer, module


def new_cache(folder, dtype="float32"):
    return TeacherCache(folder, {"teacher": "counting"}, rows=len(ROWS), classes=CLASSES, views=VIEWS, dtype=dtype)


@pytest.mark.parametrize("mix", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_live_recorded_and_read_end_alike(tmp_path, mix, workers):
    """Bit for bit with float32; the teacher runs for the views once, and then never again."""
    live, module = run(tmp_path / "live", mix=mix)
    steps = module.calls
    recorded, module = run(tmp_path / "a", new_cache(tmp_path / "cache"), mix=mix, workers=workers)
    assert steps / 2 <= module.calls <= steps / 2 + 4 * workers  # what a worker read ahead was not recorded yet
    assert new_cache(tmp_path / "cache").is_full(range(len(ROWS)))
    read, module = run(tmp_path / "b", new_cache(tmp_path / "cache"), mix=mix, workers=workers)
    assert module.calls == 0
    torch.testing.assert_close(weights(recorded), weights(live), rtol=0, atol=0)
    torch.testing.assert_close(weights(read), weights(live), rtol=0, atol=0)


@pytest.mark.parametrize(("dtype", "distance"), [("float16", 1e-3), ("int8", 2e-2)])
def test_what_is_read_is_rounded_as_what_is_recorded(tmp_path, dtype, distance):
    live, _ = run(tmp_path / "live")
    recorded, _ = run(tmp_path / "a", new_cache(tmp_path / "cache", dtype))
    read, _ = run(tmp_path / "b", new_cache(tmp_path / "cache", dtype))
    torch.testing.assert_close(weights(read), weights(recorded), rtol=0, atol=0)
    assert 0 < (weights(read) - weights(live)).norm() <= distance * weights(live).norm()


def test_the_cache_does_not_know_the_batch_or_the_student(tmp_path):
    """Recorded with one batch size and loss, read with others."""
    run(tmp_path / "a", new_cache(tmp_path / "cache"), loss="kd")
    live, _ = run(tmp_path / "live", accumulate=4, loss="dist")
    read, module = run(tmp_path / "b", new_cache(tmp_path / "cache"), accumulate=4, loss="dist")
    assert module.calls == 0
    torch.testing.assert_close(weights(read), weights(live))


@pytest.mark.parametrize("step", [2, 6, 9])
def test_a_resumed_run_that_records_is_the_uninterrupted_one(tmp_path, step):
    whole, _ = run(tmp_path / "whole", new_cache(tmp_path / "one", "float16"))
    options = {"save_strategy": "steps", "save_steps": 1}
    run(tmp_path / "run", new_cache(tmp_path / "two", "float16"), callbacks=[StopAt(step)], **options)
    resumed, _ = run(tmp_path / "run", new_cache(tmp_path / "two", "float16"), resume=True, **options)
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=0)


def test_a_damaged_record_is_computed_again(tmp_path):
    run(tmp_path / "a", new_cache(tmp_path / "cache"))
    path = tmp_path / "cache" / "view-0001.logits"
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(data)
    live, _ = run(tmp_path / "live")
    again, module = run(tmp_path / "b", new_cache(tmp_path / "cache"))
    assert module.calls == 1
    torch.testing.assert_close(weights(again), weights(live))
    assert new_cache(tmp_path / "cache").read(range(45), [1] * 45)[1].all()


@pytest.mark.parametrize(
    ("loss", "dtype", "said"),
    [("gdkd", "top-4", "gdkd needs the logits of all classes"), ("fitnet", "float16", "fitnet compares features")],
)
def test_a_loss_that_needs_more_than_is_stored_is_refused(tmp_path, loss, dtype, said):
    with pytest.raises(InputError, match=said):
        run(tmp_path / "run", new_cache(tmp_path / "cache", dtype), loss=loss)


def test_loading_the_teacher_takes_no_random_numbers_of_the_training(tmp_path):
    teacher = CachedTeacher(new_cache(tmp_path), lambda: make(Counting, 1))
    before = torch.get_rng_state()
    assert teacher.live is teacher.live
    torch.testing.assert_close(torch.get_rng_state(), before, rtol=0, atol=0)


def test_a_full_disk_ends_the_recording_not_the_training(tmp_path, monkeypatch, caplog):
    cache, left = new_cache(tmp_path / "cache"), [3]
    record = cache.record

    def until_full(*args):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        record(*args)

    monkeypatch.setattr(cache, "record", until_full)
    with caplog.at_level(logging.WARNING):
        trainer, _ = run(tmp_path / "a", cache)
    live, _ = run(tmp_path / "live")
    torch.testing.assert_close(weights(trainer), weights(live))
    said = [r.getMessage() for r in caplog.records if "no longer recorded" in r.getMessage()]
    assert len(said) == 1 and "No space left" in said[0]
    assert new_cache(tmp_path / "cache").recorded(0).sum() == 36
