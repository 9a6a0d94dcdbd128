"""A teacher by name sees and answers as its own files say, whatever data and student GDKDTrainer was given."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from tiny_training import CLASSES, SIZE, InOrder, Plain, config, make, make_data, vit, weights
from torch import nn
from transformers import ViTImageProcessor

from hf_gdkd import GDKDTrainer, Teacher
from hf_gdkd.data.datasets import Augmented, Viewed, collate
from hf_gdkd.data.views import EvalTransform, TrainTransform, View
from hf_gdkd.errors import InputError
from hf_gdkd.models.loading import load_teacher
from hf_gdkd.training.teacher import Ensemble

NAMES = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"]


def processor(mean, size=SIZE, **options):
    return ViTImageProcessor(
        size={"height": size, "width": size}, image_mean=mean, image_std=[0.5, 0.25, 1.0], **options
    )


OWN, OTHER = processor([0.5, 0.5, 0.5]), processor([0.1, 0.2, 0.3])


def named(names, seed=0):
    model = make(vit, seed)
    model.config.id2label = dict(enumerate(names))
    return model


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The folder of a teacher whose classes stand backwards, with an image processor of its own."""
    folder = tmp_path_factory.mktemp("teacher")
    named(NAMES[::-1], 1).save_pretrained(folder)
    OWN.save_pretrained(folder)
    return str(folder)


def pictures(samples=12, size=SIZE):
    g = torch.Generator().manual_seed(5)
    pixels = torch.randint(256, (samples, size, size, 3), dtype=torch.uint8, generator=g).numpy()
    return [{"image": Image.fromarray(p), "labels": i % CLASSES} for i, p in enumerate(pixels)]


def tensors(processor, **more):
    """Plain tensors, as somebody makes them with an image processor."""
    pixels = {"pixel_values": processor, **more}
    return [
        {key: View(p).exact([row["image"]])[0] for key, p in pixels.items()} | {"labels": row["labels"]}
        for row in pictures()
    ]


def heard(trainer):
    """The teacher's logits for the first batch."""
    return trainer.teacher(collate([trainer.train_dataset[i] for i in range(12)]))


def expected(teacher):
    """What the teacher says of the pictures through its own view, in the student's order."""
    pixels = View(OWN).exact([row["image"] for row in pictures()])
    with torch.no_grad():
        return load_teacher(teacher)(pixels).logits.flip(-1)


def augmented(view, **others):
    return Augmented(pictures(), TrainTransform(view, others, crop_scale=1.0, flip=False), seed=0)


DOORS = {
    "tensors and the student's processor": lambda: (tensors(OTHER), OTHER),
    "tensors with the teacher's view": lambda: (tensors(OTHER, teacher_pixel_values=OWN), None),
    "both": lambda: (tensors(OTHER, teacher_pixel_values=OWN), OTHER),
    "rows through a transform": lambda: (Viewed(pictures(), EvalTransform(View(OTHER))), None),
    "the transform before the processor": lambda: (Viewed(pictures(), EvalTransform(View(OTHER))), OWN),
    "augmented, with the teacher's view": lambda: (
        Viewed(pictures(), lambda rows: {
            "pixel_values": torch.zeros(len(rows["image"]), 3, SIZE, SIZE),
            "teacher_pixel_values": View(OWN).exact(rows["image"]), "labels": rows["labels"],
        }), None),
}  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
def test_a_name_sees_and_answers_as_its_own_files_say(tmp_path, teacher, door):
    data, processing_class = DOORS[door]()
    args = config(tmp_path)
    trainer = InOrder(
        named(NAMES), teacher, args, train_dataset=data, processing_class=processing_class, data_collator=collate
    )
    torch.testing.assert_close(heard(trainer), expected(teacher), rtol=1e-4, atol=1e-5)
    assert trainer.train().global_step == 1


@pytest.mark.parametrize("make_teacher", [Teacher.load, lambda name: Ensemble([Teacher.load(name)])])
def test_a_loaded_teacher_is_matched_too(tmp_path, teacher, make_teacher):
    data = tensors(OTHER)
    trainer = InOrder(named(NAMES), make_teacher(teacher), config(tmp_path), train_dataset=data, processing_class=OTHER)
    torch.testing.assert_close(heard(trainer).softmax(-1), expected(teacher).softmax(-1), rtol=1e-4, atol=1e-5)


def test_augmented_data_with_and_without_the_teacher_s_view(tmp_path, teacher):
    """The crop of each image is resized once, for each model to its own size."""
    for size, others in ((SIZE, {}), (SIZE, {"teacher_pixel_values": View(OWN)})):
        data = augmented(View(processor([0.1, 0.2, 0.3], size)), **others)
        trainer = InOrder(named(NAMES), teacher, config(tmp_path), train_dataset=data, data_collator=collate)
        own = augmented(View(OWN))
        with torch.no_grad():
            pixels = collate([own[i] for i in range(12)])["pixel_values"]
            logits = load_teacher(teacher)(pixels).logits.flip(-1)
        torch.testing.assert_close(heard(trainer), logits, rtol=1e-4, atol=1e-5)


def test_a_teacher_that_the_user_matched_stays_so(tmp_path, teacher):
    own = Teacher.load(teacher)
    own.match(NAMES, View(OWN), {"ant": "bee", "bee": "ant"})
    trainer = InOrder(named(NAMES), own, config(tmp_path), train_dataset=tensors(OWN), processing_class=OTHER)
    assert trainer.teacher.columns.tolist() == [5, 6, 4, 3, 2, 1, 0] and trainer.teacher.renormalize is None


def test_data_set_later(tmp_path, teacher):
    trainer = InOrder(named(NAMES), teacher, config(tmp_path), data_collator=collate)
    trainer.train_dataset = Viewed(pictures(), EvalTransform(View(OTHER)))
    trainer.train()
    torch.testing.assert_close(heard(trainer), expected(teacher), rtol=1e-4, atol=1e-5)


def test_another_way_of_resizing_is_said(tmp_path, teacher, caplog):
    nearest = processor([0.5, 0.5, 0.5], resample=0)
    trainer = InOrder(named(NAMES), teacher, config(tmp_path), train_dataset=tensors(nearest), processing_class=nearest)
    heard(trainer), heard(trainer)
    assert caplog.text.count("resizes in another way (bilinear) than the student's (nearest)") == 1


BIG = processor([0.5, 0.5, 0.5], 2 * SIZE)


@pytest.mark.parametrize("data, processing_class, said", [
    (lambda: tensors(OTHER), None, "the mean and std of the student's pixels are unknown: pass the student's image"),
    (lambda: tensors(BIG), BIG, "it takes images of 8 x 8, and the batch has 16 x 16: add the teacher's own view"),
    (lambda: tensors(BIG), OTHER, "it takes images of 8 x 8, and the batch has 16 x 16"),
    (lambda: augmented(View(BIG)), None, "it takes images of 8 x 8, and the batch has 16 x 16"),
])  # fmt: skip
def test_pixels_that_the_teacher_cannot_take(tmp_path, teacher, data, processing_class, said):
    student = nn.Sequential(nn.AdaptiveAvgPool2d(SIZE), Plain())
    student = wrap(student)
    before = [p.clone() for p in student.parameters()]
    trainer = InOrder(
        student, teacher, config(tmp_path), train_dataset=data(), processing_class=processing_class,
        data_collator=collate,
    )  # fmt: skip
    with pytest.raises(InputError) as caught:
        trainer.train()
    assert said in str(caught.value) and "as teacher_pixel_values, such as with TrainTransform" in str(caught.value)
    assert all(torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))


def wrap(body):
    """A transformers model with named classes that takes any resolution."""
    model = named(NAMES)
    model.forward = lambda pixel_values: body(pixel_values)
    model.body = body
    return model


# Classes


@pytest.mark.parametrize("student, said", [
    (lambda: named([*NAMES[:5], "yak", "zho"]), "2 of the 7 classes of the student match no single class of"),
    (lambda: make(vit), "the names of the classes of the student are unknown: it only numbers them"),
    (lambda: make(Plain), "the names of the classes of the student are unknown: it only numbers them"),
])  # fmt: skip
def test_classes_of_a_name_that_do_not_match(tmp_path, teacher, student, said):
    with pytest.raises(InputError) as caught:
        GDKDTrainer(student(), teacher, config(tmp_path), train_dataset=tensors(OTHER), processing_class=OTHER)
    assert said in str(caught.value) and "call match() of Teacher.load(" in str(caught.value)
    assert "--" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_name_and_a_student_that_both_number_their_classes(tmp_path):
    make(vit, 1).save_pretrained(tmp_path / "teacher")
    OWN.save_pretrained(tmp_path / "teacher")
    ends = []
    for each in (str(tmp_path / "teacher"), make(vit, 1), Teacher(make(vit, 1))):
        trainer = InOrder(make(Plain), each, config(tmp_path), train_dataset=make_data(), processing_class=OWN)
        trainer.train()
        ends.append(weights(trainer))
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])


@pytest.mark.parametrize("names, said", [
    (NAMES[::-1], "the teacher's classes have another order than the student's (class 0 is 'gnu' and 'ant')"),
    ([*NAMES[:5], "yak", "zho"], "2 of the 7 classes of the student match no single class of the teacher"),
])  # fmt: skip
def test_a_module_with_named_classes_in_another_order(tmp_path, names, said):
    with pytest.raises(InputError) as caught:
        GDKDTrainer(named(NAMES), named(names), config(tmp_path), train_dataset=make_data())
    assert said in str(caught.value) and "pass Teacher(model, columns=...)" in str(caught.value)
    GDKDTrainer(named(NAMES), Teacher(named(names)), config(tmp_path), train_dataset=make_data())  # as they say


@pytest.mark.parametrize("names", [NAMES, [name.upper() for name in NAMES], [f"LABEL_{i}" for i in range(CLASSES)]])
def test_a_module_whose_classes_fit_or_have_no_names(tmp_path, names):
    trainer = GDKDTrainer(named(NAMES), named(names), config(tmp_path), train_dataset=make_data())
    assert trainer.teacher.columns is None
