"""Runs with a class for each pixel: what they leave, that they resume, and the losses on features."""

import json

import pytest
import torch
from refusals import refusal
from safetensors.torch import load_file
from tiny_training import StopAt, config, make
from transformers import (
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
)

from hf_gdkd import GDKDTrainer
from hf_gdkd.commands.arguments.parsing import parse
from hf_gdkd.data.teacher_cache import TeacherCache
from hf_gdkd.scripts import distill
from hf_gdkd.training.cached_teacher import CachedTeacher

SIZES = {"depths": [1] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 16, "num_labels": 11}
WORDS = (
    "--task semantic-segmentation --dataset digit-scenes --crop_size 48 --train_rows 12 --per_device_train_batch_size"
)
WORDS += " 4 --eval_strategy no --save_strategy steps --save_steps 2 --use_cpu --report_to none --disable_tqdm true"
OTHER = "--task semantic-segmentation --teacher t --student s --dataset digit-scenes"


def segformer(width=8):
    return SegformerForSemanticSegmentation(SegformerConfig(hidden_sizes=[width] * 4, **SIZES))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A folder with a teacher of random weights."""
    folder = tmp_path_factory.mktemp("teacher")
    config = segformer(12).config
    config.id2label = dict(enumerate(["background", *map(str, range(10))]))
    make(lambda: SegformerForSemanticSegmentation(config)).save_pretrained(folder)
    SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return str(folder)


def test_a_stopped_run_goes_on_by_its_settings_to_the_same_weights(tmp_path, teacher, monkeypatch):
    """With EMA, through `--config` and `last`; another crop is another run."""
    run = [*WORDS.split(), "--teacher", teacher, "--student", teacher, "--student_init", "random", "--max_steps", "5"]
    run += ["--loss", "gdkd", "--ema_decay", "0.9", "--allow_weak_teacher", "--output_dir"]
    metrics = distill.main([*run, str(tmp_path / "whole")])
    assert {"mean_iou", "pixel_accuracy", "agreement", "teachers", "iou"} <= metrics.keys()
    init = GDKDTrainer.__init__

    def stopping(trainer, *args, **options):
        init(trainer, *args, **options)
        trainer.add_callback(StopAt(3))

    monkeypatch.setattr(GDKDTrainer, "__init__", stopping)
    folder = tmp_path / "stopped"
    distill.main([*run, str(folder)])
    monkeypatch.undo()
    again = ["--config", str(folder / "recipe.yaml"), "--output_dir", str(folder), "--use_cpu", "--report_to", "none"]
    again += ["--resume_from_checkpoint", "last"]
    refusal(lambda: distill.main([*again, "--crop_size", "40"]), "this run began with crop_size [48]")
    distill.main(again)
    whole, stopped = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert whole.keys() == stopped.keys() and all(torch.equal(whole[key], stopped[key]) for key in whole)
    saved = json.loads((folder / "preprocessor_config.json").read_text())
    assert saved["do_reduce_labels"] is False


@pytest.mark.parametrize("loss", ["fitnet", "at", "cwd_features", "cwd"])
def test_losses_on_maps_of_features_and_logits(tmp_path, loss):
    """Trainer and models of different widths; the terms are logged and finite, and the student moves."""
    student, labels = make(segformer), torch.randint(11, (4, 64, 64), generator=torch.Generator().manual_seed(0))
    labels[:, :20] = 255
    data = [{"pixel_values": torch.randn(3, 64, 64), "labels": y} for y in labels]
    args = config(tmp_path, loss, max_steps=1, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    before = next(student.parameters()).clone()
    trainer = GDKDTrainer(student, make(lambda: segformer(12), 1), args, train_dataset=data)
    trainer.train()
    assert trainer.state.log_history[0][loss if loss != "cwd" else "kd"] > 0
    assert not torch.equal(before, next(student.parameters()))


def test_no_cache_of_pixels_in_python(tmp_path):
    cache = TeacherCache(tmp_path / "cache", {}, rows=1, classes=11, views=1)
    teacher = CachedTeacher(cache, lambda: None)
    refusal(lambda: GDKDTrainer(segformer(), teacher, config(tmp_path)), "logits of whole images, not of each pixel")


def test_a_teacher_by_name_is_a_segmenter_as_the_student_is(tmp_path, teacher):
    student, data = make(segformer), [{"pixel_values": torch.randn(3, 64, 64), "labels": torch.ones(64, 64).long()}] * 2
    student.config.id2label = dict(enumerate(["background", *map(str, range(10))]))
    processor = SegformerImageProcessor(size={"height": 64, "width": 64}, image_mean=[0.5] * 3)
    args = config(tmp_path, max_steps=1)
    trainer = GDKDTrainer(student, teacher, args, train_dataset=data, processing_class=processor)
    assert isinstance(trainer.teacher.model, SegformerForSemanticSegmentation)
    trainer.train()


@pytest.mark.parametrize("words, said", [
    ("--crop_scale 0.5", "crop_scale is for --task image-classification"),
    ("--streaming --max_steps 2", "streaming is for --task image-classification"),
    ("--mixup_alpha 0.2", "mixup_alpha"), ("--label_free", "label_free"), ("--cutout 4", "cutout"),
    ("--teacher_cache folder", "each pixel would take megabytes"),
    ("--crop_size 1 2 3", "crop_size is 1 2 3"), ("--scale_range 2 1", "scale_range is 2.0 1.0"),
    ("--window 0", "window is 0"), ("--batch_eval_metrics false", "mean IoU needs the predictions by batch"),
    ("--metric_for_best_model top1", "loss, mean_iou, pixel_accuracy"),
    ("--task detection", "task is 'detection': choose one of image-classification, semantic-segmentation"),
])  # fmt: skip
def test_flags_that_do_not_apply(words, said):
    refusal(lambda: parse([*OTHER.split(), *words.split()]), said)


@pytest.mark.parametrize("words", ["--crop_size 64", "--scale_range 0.5 1", "--palette p.json", "--resize_logits",
                                   "--window 64", "--reduce_labels true", "--id2label i.json"])  # fmt: skip
def test_flags_of_segmentation_alone(words):
    said = f"{words.split()[0][2:]} is for --task semantic-segmentation"
    refusal(lambda: parse([*"--teacher t --student s".split(), *words.split()]), said)
    refusal(lambda: parse("--teacher t --student s --loss cwd".split()), "loss cwd is for --task semantic-segmentation")
