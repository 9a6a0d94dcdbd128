"""Stacks: every student comes out as its own trainer would have trained it."""

import json
from concurrent.futures import Future

import pytest
import torch
from tiny_training import InOrder, convnext, make, make_data, vit

from hf_gdkd import GDKDConfig, Teacher
from hf_gdkd.comparison import stacked_jobs
from hf_gdkd.comparison.spec import Comparison
from hf_gdkd.comparison.stack import Stack
from hf_gdkd.errors import InputError
from hf_gdkd.scripts import compare

RUNS = {
    "ce": {"loss": "ce", "label_smoothing_factor": 0.1},
    "kd": {"loss": "kd", "temperature": 4.0, "ce_weight": 0.1, "kd_weight": 4.0},
    "kd of other weights": {"loss": "kd", "temperature": 4.0, "kd_weight": 0.5},
    "dkd": {"loss": "dkd", "alpha": 1.0, "beta": 2.0},
    "gdkd auto": {"loss": "gdkd", "k": 3, "w2": 2.0, "kd_weight": "auto:8"},
    "fitnet": {"loss": "fitnet", "kd_weight": 3.0},
    "rkd": {"loss": "rkd"},
    "combined": {"loss": [{"name": "dist", "weight": "auto:4"}, {"name": "fitnet", "normalize": True, "weight": 30}]},
}


def trainers(tmp_path, teacher, runs, **options):
    common = {"num_train_epochs": 2, "per_device_train_batch_size": 12, "learning_rate": 1e-3, "max_grad_norm": 0}
    common |= {"use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "weight_decay": 0.1}
    found = []
    for seed in (0, 1):
        for name in runs:
            run = RUNS[name]
            args = GDKDConfig(output_dir=str(tmp_path / name), seed=seed, **common | options | run)
            student = make(vit, seed)  # also what the projections are drawn after
            taught = None if run["loss"] == "ce" else Teacher(teacher)
            found.append(InOrder(student, taught, args, train_dataset=make_data(seed=seed)))
    return found


SGD = {"optim": "sgd", "optim_args": "momentum=0.9", "lr_scheduler_type": "linear", "warmup_steps": 2}


@pytest.mark.parametrize(("runs", "options"), [(list(RUNS), {}), (["kd", "combined"], SGD)], ids=["adamw", "sgd"])
def test_every_student_is_as_its_own_trainer_trains_it(tmp_path, runs, options):
    teacher = make(convnext, 7)
    stack = Stack(trainers(tmp_path, teacher, runs, **options), steps=6)
    data = [make_data(seed=seed) for seed in (0, 1)]
    for _ in range(2):
        for rows in (range(12), range(12, 24), range(24, 31)):
            pixels, labels = (
                torch.stack([torch.stack([own[row][key] for row in rows]) for own in data])
                for key in ("pixel_values", "labels")
            )
            stack.train(iter([(pixels, labels)]))
    weights = stack.weights()
    for j, trainer in enumerate(trainers(tmp_path, teacher, runs, **options)):
        before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        trainer.train()
        for name, value in trainer.model.state_dict().items():
            if "key.bias" in name or "k_proj.bias" in name:
                continue  # without an effect, so what moves it is rounding
            moved = (value - before[name]).norm()
            assert (value - weights[name][j]).norm() <= 2e-3 * moved + 1e-7, (trainer.args.output_dir, name)


def test_what_a_stack_cannot_do_is_said(tmp_path):
    args = GDKDConfig(output_dir=str(tmp_path), kd_warmup_epochs=2, use_cpu=True, report_to="none")
    trainer = InOrder(make(vit), Teacher(make(convnext)), args, train_dataset=make_data())
    with pytest.raises(InputError, match="kd_warmup_epochs is 2: --stacked needs 0"):
        Stack([trainer], steps=1)


def test_what_a_stack_cannot_do_is_said_before_anything_runs(tmp_path):
    settings = {
        "dataset": "digits", "test_split": "test", "trials": 1, "seeds": [0], "tuning_seed": 100, "teacher": "nowhere",
        "students": {"vit": {"student": "scripts/demo/vit"}}, "validation": {"validation_rows": 100},
        "losses": {"ce": [{}], "kd": [{}]},
    }  # fmt: skip
    (tmp_path / "a.yaml").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=r"max_grad_norm is 1\.0: --stacked needs 0"):
        compare.main([str(tmp_path / "a.yaml"), "--stacked", "--output_dir", str(tmp_path)])


class AtOnce:
    """Stands for a pool of processes, whose imports take long: does what is submitted before it returns."""

    def __init__(self, *args):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def submit(self, function, *args):
        future = Future()
        future.set_result(function(*args))
        return future


def test_stacked_jobs_leave_what_single_runs_leave(tmp_path, monkeypatch):
    """The same accuracies, so the same rows, order, crops, weights and evaluation."""
    settings = {
        "dataset": "digits", "test_split": "test", "trials": 2, "seeds": [0, 1], "tuning_seed": 100,
        "teacher": {"student": "scripts/demo/cnn", "validation_rows": 100, "train_rows": 200, "num_train_epochs": 1},
        "students": {"vit": {"student": "scripts/demo/vit", "num_train_epochs": 2, "learning_rate": 1e-3}},
        "training": {"train_rows": 100, "crop_padding": 2, "max_grad_norm": 0, "per_device_train_batch_size": 32,
                     "allow_weak_teacher": True, "use_cpu": True},
        "validation": {"validation_rows": 100},
        "losses": {"ce": [{}, {"label_smoothing_factor": 0.1}], "kd": [{"temperature": 4}, {"temperature": 2}]},
    }  # fmt: skip
    (tmp_path / "a.yaml").write_text(json.dumps(settings))
    one, other = (Comparison.read(tmp_path / "a.yaml", tmp_path / name) for name in ("stacked", "single"))
    for job in one.teachers():
        compare.work(job)
    other.teacher = one.teacher = str(one.teachers()[0].folder)
    monkeypatch.setattr(stacked_jobs, "ProcessPoolExecutor", AtOnce)
    stacked_jobs.do_stacked(one.finals(), tmp_path / "pixels", "test")
    for job, single in zip(one.finals(), other.finals(), strict=True):
        compare.work(single)
        compare.work(other.test(single))
        assert job.metrics()["top1"] == pytest.approx(single.metrics()["top1"], abs=0.011)
        last = [each.metrics()["last"]["top1"] for each in (one.test(job), other.test(single))]
        assert last[0] == pytest.approx(last[1], abs=0.011)
