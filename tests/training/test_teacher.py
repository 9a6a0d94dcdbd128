"""Several teachers as one, and what a device can hold."""

import pytest
import torch
from hub_content import CLASSES as KNOWN
from hub_content import IMAGENET_MEAN, IMAGENET_STD, model_files, picture
from PIL import Image
from tiny_training import CLASSES, SIZE, NormedTeacher, config, convnext, distil, make, make_data, vit, weights
from torch import nn
from transformers import ViTImageProcessor

from hf_gdkd import GDKDTrainer, Teacher
from hf_gdkd.data.views import TrainTransform, View
from hf_gdkd.errors import InputError
from hf_gdkd.losses import build_loss
from hf_gdkd.models.heads import class_names
from hf_gdkd.training.distributed import convolves
from hf_gdkd.training.teacher import Ensemble, mean_prediction


@pytest.mark.parametrize("weights", [None, [2.0, 1.0, 1.0]])
def test_the_mean_is_of_probabilities(weights):
    logits = torch.randn(3, 5, CLASSES, generator=torch.Generator().manual_seed(0), dtype=torch.float32) * 4
    shares = torch.tensor([1.0, 1.0, 1.0] if weights is None else weights)
    expected = (logits.softmax(-1) * (shares / shares.sum()).view(3, 1, 1)).sum(0)
    torch.testing.assert_close(mean_prediction(list(logits), weights).exp(), expected)
    torch.testing.assert_close(mean_prediction(list(logits), weights).exp().sum(-1), torch.ones(5))


def test_far_logits_stay_finite_and_one_teacher_is_itself():
    far = [torch.tensor([[1e4, -1e4]]), torch.tensor([[-1e4, 1e4]])]
    torch.testing.assert_close(mean_prediction(far).exp(), torch.full((1, 2), 0.5))
    logits = torch.randn(4, CLASSES)
    torch.testing.assert_close(mean_prediction([logits]).softmax(-1), logits.softmax(-1))


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [1.0, 0.0], [1.0, float("nan")], [1.0, 2.0, 3.0]])
def test_weights_that_do_not_fit(weights):
    with pytest.raises(InputError, match="expected one positive number for each of 2 teachers"):
        mean_prediction([torch.randn(2, 3)] * 2, weights)


def test_each_teacher_answers_in_its_own_way():
    """Own pixels, own columns: the ensemble is the mean of what each says alone."""
    batch = {name: torch.randn(6, 3, SIZE, SIZE) for name in ("pixel_values", "teacher_pixel_values_2")}
    first = Teacher(make(NormedTeacher, 1))
    second = Teacher(make(lambda: NormedTeacher(CLASSES + 3), 2), columns=torch.arange(CLASSES) + 2)
    second.pixels = "teacher_pixel_values_2"
    together = Ensemble([first, second], [1.0, 3.0])(batch)
    with torch.no_grad():
        alone = first.model(batch["pixel_values"]), second.model(batch["teacher_pixel_values_2"])[:, 2:-1]
    torch.testing.assert_close(together.exp(), 0.25 * alone[0].softmax(-1) + 0.75 * alone[1].softmax(-1))
    assert Ensemble([first, second]).num_labels == CLASSES


def test_a_step_with_two_teachers_is_that_of_the_plain_loop(tmp_path):
    teachers = [make(NormedTeacher, seed) for seed in (1, 2)]
    trainer = distil(tmp_path, teacher=Ensemble([Teacher(t) for t in teachers]), data=make_data(12), loss="gdkd")
    student = make(lambda: type(trainer.model)())
    batch = make_data(12)
    pixels, labels = torch.stack([r["pixel_values"] for r in batch]), torch.stack([r["labels"] for r in batch])
    logits = student(pixels)
    mean = torch.stack([t(pixels).softmax(-1) for t in teachers]).mean(0).log().detach()
    (nn.functional.cross_entropy(logits, labels) + build_loss("gdkd")(logits, mean)).backward()
    expected = torch.cat([(p - 0.3 * p.grad).detach().flatten() for p in student.parameters()])
    torch.testing.assert_close(weights(trainer), expected)
    assert all(p.grad is None and not p.requires_grad for t in teachers for p in t.parameters())


def test_a_teacher_that_does_not_fit_is_refused(monkeypatch):
    teacher = Teacher(nn.Linear(1000, 1000), name="big")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3_000_000, 10_000_000))
    with pytest.raises(InputError, match=r"the teacher big takes 0.0 GB, and 0.0 GB are free on cuda: use --teacher_d"):
        teacher.to(torch.device("cuda"))


def test_another_number_of_classes_is_refused(tmp_path):
    pair = Ensemble([Teacher(vit(9)), Teacher(vit(9))])
    with pytest.raises(InputError, match="the teacher has 9 classes and the student 7"):
        GDKDTrainer(vit(), pair, config(tmp_path), train_dataset=make_data())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a small ViT that knows pictures of 100 classes, normalised with mean and std 0.5."""
    folder = tmp_path_factory.mktemp("vit")
    for name, data in model_files()["google/vit-base-patch16-224"].items():
        (folder / name).write_bytes(data)
    return str(folder)


def test_the_students_normalisation_would_blind_the_teacher(trained):
    """The mistake that `match` prevents: student pixels fed as they are cost a third of the accuracy, ours nothing."""
    teacher = Teacher.load(trained)
    imagenet = {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD, "resample": 2}
    student_view = View(ViTImageProcessor(size={"height": 32, "width": 32}, **imagenet))
    teacher.match(class_names(teacher.model), student_view)
    labels = torch.tensor([i for i in KNOWN for _ in range(2)])
    images = [Image.fromarray(picture(int(i), 5000 + n, 40, 40)) for n, i in enumerate(labels)]
    batch = TrainTransform(student_view, crop_scale=1.0, flip=False)({"image": images})
    with torch.no_grad():
        own = teacher.model(teacher.view.exact(images)).logits
        naive = teacher.model(batch["pixel_values"]).logits
    accuracy = {name: float((logits.argmax(-1) == labels).float().mean()) for name, logits in
                {"own": own, "naive": naive, "ours": teacher(batch)}.items()}  # fmt: skip
    assert accuracy["ours"] == accuracy["own"] > 0.9
    assert accuracy["naive"] < accuracy["own"] - 0.3


@pytest.mark.parametrize("model, expected", [
    (vit, False),
    (NormedTeacher, False),
    (lambda: nn.Conv2d(3, 8, 1), False),
    (lambda: nn.Conv2d(3, 8, (1, 3)), True),
    (convnext, True),
])  # fmt: skip
def test_a_patch_embedding_does_not_make_a_convolutional_teacher(model, expected):
    assert convolves(model()) is expected
