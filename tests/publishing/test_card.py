"""The card as a stranger reads it."""

import re
from pathlib import Path

import pytest
from datasets import Dataset
from tiny_training import distil, vit
from transformers import ViTConfig

from hf_gdkd import GDKDConfig
from hf_gdkd.data.loading import Data
from hf_gdkd.models.segmentation_networks.modeling import SegmentationNetworkConfig
from hf_gdkd.publishing import upload
from hf_gdkd.publishing.card import Origin, shared_command, write_card
from hf_gdkd.publishing.trainer_card import last_evaluation

NUMBERS = {"top1": 0.5, "top5": 1.0, "nll": 1.25, "ece": 0.125, "parameters": 1234, "flops": 2e9}
NUMBERS |= {"images_per_second": 1000.4}


@pytest.fixture
def card(tmp_path, monkeypatch):
    """The text of the card of a student of two local teachers; what differs from this can be said."""
    monkeypatch.chdir(tmp_path)
    for name in ("student", "a/teacher", "b/teacher", "photos"):
        Path(name).mkdir(parents=True)
    for name in ("student", "a/teacher", "b/teacher"):
        ViTConfig().save_pretrained(name)

    def write(metrics=NUMBERS, dataset="photos", repo=None, origin=None, **options):
        notes, options = options.pop("auto_notes", []), {"loss": "gdkd"} | options
        args = GDKDConfig(output_dir="student", use_cpu=True, report_to="none", **options)
        args.auto_notes = notes
        data = Data(dataset, Dataset.from_dict({}), Dataset.from_dict({"a": range(2000)}), "test", ["cat", "dog"])
        origin = origin or Origin(
            "facebook/deit-tiny-patch16-224", True, [(str(tmp_path / "a/teacher"), None), ("b/teacher", "main")],
            command="hf-gdkd distill --teacher /home/me/a/teacher b/teacher --config=~/x/y.yaml", license="mit",
            local_flags=["teacher", "dataset"],
        )  # fmt: skip
        write_card("student", origin, args, data, metrics, repo)
        return Path("student/README.md").read_text()

    return write


def test_local_folders_are_named_by_their_last_part(card, tmp_path):
    text = card(NUMBERS | {"agreement": 0.75, "teachers": {"x": NUMBERS, "y": NUMBERS | {"top1": 0.25}}}, repo="me/it")
    assert str(tmp_path) not in text and "b/teacher" not in text.replace("distill --teacher teacher b/teacher", "")
    assert "from the teachers `teacher`, `teacher` with" in text and "| teacher `teacher` | 25.00 |" in text
    assert "    hf-gdkd distill --teacher teacher b/teacher --config=y.yaml\n" in text
    assert "--config recipe.yaml --teacher TEACHER --dataset DATASET --output_dir runs/again\n" in text
    assert "TEACHER, DATASET stand for local files or folders of the author" in text


def test_the_command_keeps_what_is_no_path():
    command = "hf-gdkd distill --teacher google/vit --optim_args a=/b/c --output_dir '/my runs/a' --x ~/y"
    assert shared_command(command) == "hf-gdkd distill --teacher google/vit --optim_args a=c --output_dir a --x y"


def test_a_network_of_the_paper_is_named_with_its_backbone(card):
    """It loads after its module is imported; what is on the Hub is its backbone."""
    SegmentationNetworkConfig(architecture="pspnet_resnet18").save_pretrained("student")
    commit = "0" * 40
    name, task = "segmentation/pspnet_resnet18", "semantic-segmentation"
    text = card({}, origin=Origin(name, True, [], student_revision=commit, task=task))
    assert "import hf_gdkd.models.segmentation_networks.modeling  # so that" in text
    weights = f"its backbone from the pretrained weights of `timm/resnet18.tv_in1k`@{commit}."
    assert f"Architecture: `segmentation/pspnet_resnet18`, {weights}" in text
    assert "base_model: timm/resnet18.tv_in1k" in text


def test_how_to_repeat_the_run(card):
    text = card(repo="me/it")
    assert "    pip install hf-gdkd==" in text and "    hf download me/it recipe.yaml --local-dir .\n" in text
    assert 'pipeline("image-classification", "me/it")' in text
    assert "hf download" not in card()


def test_the_table(card):
    text = card(NUMBERS | {"flops": None})
    assert "Measured on the 2,000 images of the split `test`." in text
    assert "| this model | 50.00 | 100.00 | 1.2500 | 0.1250 | 1,234 | - | 1,000 |" in text
    assert "| this model | 50.00 | 100.00 | 1.2500 | 0.1250 | 1,234 | 2 | 1,000 |" in card()


def test_a_model_that_was_not_measured(card):
    text = card({})
    assert "The model has not been measured." in text and "| this model" not in text and "model-index" not in text


def test_an_epoch_that_was_chosen_on_the_test_split_is_said(card):
    history = {key: {"top1": 0.5, "epoch": 3.0} for key in ("best", "last")}
    best = {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"}
    said = "chosen on the same images (the split `test`)"
    assert said in " ".join(card(NUMBERS | history, **best).split()) and said not in card(NUMBERS | history)


def test_without_labels(card):
    origin = Origin("cifar/resnet20", False, [("a/teacher", None)], label_free=True)
    measured = {key: NUMBERS[key] for key in ("parameters", "flops", "images_per_second")}
    text = card(measured | {"agreement": 0.75, "teachers": {"a/teacher": measured}}, origin=origin)
    assert "top-1" not in text and "The two models predict the same class for 75.00 % of the images" in text
    assert "its accuracy was not measured" in text and "| teacher `teacher` | 1,234 | 2 | 1,000 |" in text


SEGMENTED = {"mean_iou": 0.5, "pixel_accuracy": 0.75, "absent_classes": 1, "iou": {"cat": 0.5, "dog": None}}
SEGMENTED |= {"parameters": 1234, "flops": 2e9, "images_per_second": 1000.4}


def test_the_card_of_a_segmenter(card):
    """The same elements, with mean IoU, the IoU of each class beside the teacher's, and the picture."""
    origin = Origin("nvidia/mit-b0", True, [("a/teacher", None)], task="semantic-segmentation")
    history = {key: {"mean_iou": 0.25, "epoch": 3.0} for key in ("best", "last")}
    teacher = SEGMENTED | {"iou": {"cat": 0.75, "dog": 0.25}, "absent_classes": 0}
    Path("student/segmentation.png").touch()
    text = card(
        SEGMENTED | history | {"agreement": 0.75, "teachers": {"a/teacher": teacher}}, "photos", "me/it", origin
    )
    assert "A small semantic segmentation model, distilled from" in text
    assert 'segment = pipeline("image-segmentation", "me/it")' in text and "pipeline_tag: image-segmentation" in text
    assert "| this model | 50.00 | 75.00 | 1,234 | 2 | 1,000 |" in text and "type: mean_iou" in text
    assert "| cat | 50.00 | 75.00 |\n| dog | - | 25.00 |\n" in text
    assert "1 of the 2 classes has no pixel" in text and "the same class for 75.00 % of the labelled pixels" in text
    assert "Mean IoU during training: 25.00 %" in text and "(segmentation.png)" in text
    assert not re.search(r"{{|{%|None|Undefined|top-1|\n\n\n", text.split("---\n", 2)[2])
    pushed = upload._card(text.replace("me/it", "student"), "me/it")
    assert 'pipeline("image-segmentation", "me/it")' in pushed and "hf download me/it recipe.yaml" in pushed


def test_nothing_of_the_template_is_left(card):
    for metrics in ({}, NUMBERS, NUMBERS | {"agreement": 0.5, "teachers": {"a": NUMBERS, "b": NUMBERS}}):
        text = card(metrics)
        assert not re.search(r"{{|{%|None|Undefined|\n\n\n", text.split("---\n", 2)[2])


def test_the_losses_of_a_combination_with_their_weights_and_what_was_found(card):
    options = ["gdkd.k=1", "gdkd.weight=auto:2", "fitnet.weight=auto"]
    found = {"auto_notes": ["loss auto (a CNN) stands for this", "because of that."]}
    text = card(loss="gdkd+fitnet", loss_options=options, temperature=2.0, ce_weight=0.5, kd_weight=3.0, **found)
    assert "with the loss `gdkd+fitnet` of" in text
    assert "0.5 × cross-entropy + 3.0 × (auto:2 × gdkd + 30.0 × fitnet), where\n\n- gdkd = 0.5 × high + 1" in text
    assert "with temperature 2.0, k 1," in text and "\n- fitnet = 1 × fitnet with normalize True" in text
    said = (
        "These settings were found before training:\n\n- loss auto (a CNN) stands for this\n- because of that.\n\n## "
    )
    assert said in text and not re.search(r"{{|{%|None|Undefined|\n\n\n", text.split("---\n", 2)[2])


def test_a_card_is_written_completely_or_not_at_all(card, monkeypatch):
    before = card()
    monkeypatch.setattr("huggingface_hub.ModelCard.save", lambda self, path: Path(path).write_text("half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        card(NUMBERS | {"top1": 0.75})
    assert Path("student/README.md").read_text() == before


def test_a_card_that_trainer_wrote_is_written_again_and_no_other(tmp_path):
    trainer = distil(tmp_path, vit(), loss="ce", max_steps=1)
    trainer.create_model_card()
    path = tmp_path / "README.md"
    path.write_text(path.read_text() + "of an earlier training")
    trainer.create_model_card()
    assert "generated automatically" in path.read_text() and "of an earlier training" not in path.read_text()
    path.write_text("# Mine\n")
    trainer.create_model_card()
    assert path.read_text() == "# Mine\n"


def test_the_card_of_a_trainer_leaves_out_what_is_not_known(tmp_path):
    """A plain module has no name, no classes and no pipeline; a teacher without a name is no model to link to."""
    trainer = distil(tmp_path, max_steps=1)
    trainer.create_model_card()
    _, metadata, text = (tmp_path / "README.md").read_text().split("---\n", 2)
    assert "distilled from the teacher `NormedTeacher`" in text and "NormedTeacher" not in metadata
    assert "- Architecture: `Plain`.\n" in text and "The model has not been measured." in text
    assert not re.search(r"pipeline\(|- Data|Classes|{{|{%|None|Undefined|\n\n\n", text)
    assert "transformers" not in metadata and "base_model" not in metadata


def test_the_card_of_a_trainer_shows_the_evaluation_of_the_weights_that_it_has(tmp_path):
    """Those of the best epoch, if they were loaded; and what was measured afterwards."""
    best = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    best |= {"load_best_model_at_end": True, "learning_rate": 30.0, "max_steps": 3}
    trainer = distil(tmp_path, **best, metric_for_best_model="loss")
    losses = {row["step"]: row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row}
    step = min(losses, key=losses.get)
    assert step < 3 and last_evaluation(trainer)["step"] == step
    trainer.evaluate()
    assert last_evaluation(trainer)["eval_loss"] == pytest.approx(losses[step])
    trainer.create_model_card()
    assert f"| loss | {losses[step]:.4g} |" in (tmp_path / "README.md").read_text()
