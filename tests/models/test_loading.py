"""Models by name, offline: the smallest ones of transformers and timm, saved and loaded again."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from PIL import Image
from transformers import (
    AutoModelForImageClassification,
    ConvNextImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
    pipeline,
)
from transformers.utils import logging as transformers_logging

from hf_gdkd.errors import InputError
from hf_gdkd.models import loading as models
from hf_gdkd.models.loading import load_model, load_processor, load_teacher, pin_revision, save_processor
from hf_gdkd.models.names import SHORT_NAMES, resolve_name

TINY = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 1}
ANIMALS = ["cat", "dog", "eel", "fox"]


def vit_config(names=ANIMALS, **options):
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    return ViTConfig(**TINY, image_size=16, patch_size=8, **labels, **options)


@pytest.fixture
def vit(tmp_path):
    """A folder with a ViT of four animals and its image processor."""
    torch.manual_seed(0)
    folder = tmp_path / "vit"
    ViTForImageClassification(vit_config(initializer_range=0.2)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def edit_config(folder, **changes):
    path = Path(folder, "config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def assert_one_sentence(error, *words):
    text = str(error.value)
    assert "\n" not in text and text.endswith((".", "?")), text
    for word in words:
        assert word in text, text


# -- names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, full",
    [
        *SHORT_NAMES.items(),
        ("google/vit-base-patch16-224", "google/vit-base-patch16-224"),
        ("somebody/their-model", "somebody/their-model"),
        ("resnet18", "timm/resnet18.a1_in1k"),
        ("timm/resnet18", "timm/resnet18.a1_in1k"),
        ("resnet18.tv_in1k", "timm/resnet18.tv_in1k"),
        ("timm/resnet18.tv_in1k", "timm/resnet18.tv_in1k"),
        ("cifar/resnet8x4", "cifar/resnet8x4"),
        ("CIFAR/shufflev1", "cifar/ShuffleV1"),
    ],
)
def test_resolve_name(name, full):
    assert resolve_name(name) == full


def test_resolve_folder(vit):
    assert resolve_name(str(vit)) == str(vit)


@pytest.mark.parametrize(
    "name, words",
    [
        ("/no/such/folder", ["no folder /no/such/folder"]),
        ("./no-such-folder", ["no folder"]),
        ("~/no-such-folder", ["no folder"]),
        ("runs/a/b", ["no folder"]),
        ("resnet-81", ["unknown model 'resnet-81'", "resnet-18"]),
        ("deit-tinny", ["deit-tiny"]),
        ("xxxxxxxxxxxxxxxxx", ["short names are", "vit-base"]),
        ("cifar/resnet9", ["no CIFAR network 'resnet9'", "resnet8"]),
        ("resnet18.nonsense", ["no weights named resnet18.nonsense", "resnet18.a1_in1k"]),
    ],
)
def test_unknown_names(name, words):
    with pytest.raises(InputError) as error:
        resolve_name(name)
    assert_one_sentence(error, *words)


def test_folder_without_config(tmp_path):
    with pytest.raises(InputError) as error:
        load_model(str(tmp_path))
    assert_one_sentence(error, str(tmp_path), "config.json")


# -- loading -----------------------------------------------------------------------------------------------


def test_local_folder_keeps_everything(vit):
    saved, loaded = ViTForImageClassification.from_pretrained(vit), load_model(str(vit))
    torch.testing.assert_close(loaded.state_dict(), saved.state_dict(), rtol=0, atol=0)
    assert loaded.config.id2label == dict(enumerate(ANIMALS))
    torch.testing.assert_close(load_teacher(str(vit)).state_dict(), saved.state_dict(), rtol=0, atol=0)


def test_float32_though_saved_in_bfloat16(vit):
    ViTForImageClassification.from_pretrained(vit).to(torch.bfloat16).save_pretrained(vit)
    for model in (load_model(str(vit)), load_teacher(str(vit)), load_model(str(vit), label_names=["a"], init="random")):
        assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("init", ["pretrained", "random"])
def test_label_names_stand_in_the_saved_config(vit, tmp_path, init):
    names = ["ant", "bee", "cat"]
    load_model(str(vit), label_names=names, init=init).save_pretrained(tmp_path / "saved")
    config = AutoModelForImageClassification.from_pretrained(tmp_path / "saved").config
    assert config.id2label == dict(enumerate(names))
    assert config.label2id == {name: i for i, name in enumerate(names)}
    assert config.num_labels == 3


def test_random_needs_only_a_config(tmp_path):
    vit_config().save_pretrained(tmp_path)
    model = load_model(str(tmp_path), label_names=["x", "y"], init="random")
    assert model.classifier.weight.shape == (2, 8)
    assert load_model(str(tmp_path), num_labels=5, init="random").num_labels == 5
    assert load_model(str(tmp_path), init="random").config.id2label == dict(enumerate(ANIMALS))


def test_random_is_random(vit):
    a, b, old = (load_model(str(vit), init=init) for init in ("random", "random", "pretrained"))
    assert not torch.equal(a.classifier.weight, b.classifier.weight)
    assert not torch.equal(a.classifier.weight, old.classifier.weight)


@pytest.mark.parametrize("name", ["resnet18", "test_vit", "test_convnext"])
def test_timm_architecture_has_timm_initialisation(name):
    """Weight by weight the standard deviation of timm's own initialisation, not the wrapper's 0.02."""
    torch.manual_seed(0)
    model = load_model(name, label_names=ANIMALS, init="random")
    fresh = timm.create_model(name, num_classes=4).state_dict()
    assert model.config.id2label == dict(enumerate(ANIMALS))
    assert model.timm_model.state_dict().keys() == fresh.keys()
    for key, tensor in model.timm_model.state_dict().items():
        if tensor.numel() > 2000:
            assert tensor.std().item() == pytest.approx(fresh[key].std().item(), rel=0.15), key


def test_timm_architecture_alone_has_its_own_classes():
    model = load_model("test_resnet", init="random")
    assert model.num_labels == 1000 and model.config.id2label[0].startswith("tench")


def test_timm_round_trip(tmp_path):
    model = load_model("test_vit", label_names=ANIMALS, init="random").eval()
    model.save_pretrained(tmp_path)
    save_processor(load_processor("test_vit", init="random"), str(tmp_path))
    again = load_model(str(tmp_path)).eval()
    assert again.config.id2label == dict(enumerate(ANIMALS))
    assert again.config.label2id == {name: i for i, name in enumerate(ANIMALS)}
    pixels = load_processor(str(tmp_path))([Image.new("RGB", (50, 70), "red")], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(again(pixels).logits, model(pixels).logits)
    assert load_model(str(tmp_path), init="random").config.id2label == dict(enumerate(ANIMALS))


# -- the head ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [["fox", "cat", "dog", "eel"], ["eel", "cat"], ["gnu", "fox", "dog", "hen", "cat", "eel"], ["ape", "bat"]],
    ids=["other order", "fewer", "more", "none"],
)
@pytest.mark.parametrize("kind", ["vit", "resnet", "timm", "cifar"])
def test_head_keeps_rows_of_matching_classes(tmp_path, kind, names):
    torch.manual_seed(0)
    if kind == "vit":
        model = ViTForImageClassification(vit_config())
    elif kind == "resnet":
        sizes = {"hidden_sizes": [8, 8], "depths": [1, 1], "embedding_size": 8, "layer_type": "basic"}
        model = ResNetForImageClassification(ResNetConfig(**sizes, id2label=dict(enumerate(ANIMALS))))
        model.train()(torch.randn(4, 3, 32, 32))  # running statistics of their own
    else:
        name = "test_resnet" if kind == "timm" else "cifar/resnet8"
        model = load_model(name, label_names=ANIMALS, init="random")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    fitted = load_model(str(tmp_path), label_names=names)
    assert fitted.config.id2label == dict(enumerate(names)) and fitted.num_labels == len(names)
    pixels = torch.randn(2, 3, 16, 16) if kind == "vit" else torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        old, new = model.eval()(pixels).logits, fitted.eval()(pixels).logits
    assert new.shape == (2, len(names))
    for i, name in enumerate(names):
        if name in ANIMALS:
            torch.testing.assert_close(new[:, i], old[:, ANIMALS.index(name)])
    head = [m for m in fitted.modules() if isinstance(m, torch.nn.Linear)][-1]
    assert all(row.std() > 0 for row in head.weight)


def test_num_labels(vit):
    """The same number keeps the head; another makes a new one."""
    old = load_model(str(vit))
    assert torch.equal(load_model(str(vit), num_labels=4).classifier.weight, old.classifier.weight)
    assert load_model(str(vit), num_labels=7).classifier.weight.shape == (7, 8)


def test_another_number_of_classes_is_said_in_a_sentence(vit, caplog):
    """Without transformers' table of tensors, which stays for what others load; its verbosity is as before."""
    library, level = logging.getLogger("transformers"), transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_warning()  # commands that ran before have made it quiet
    library.addHandler(caplog.handler)
    try:
        load_model(str(vit), num_labels=7)
        said = "student's head: 0 of 7 classes keep their pretrained weights, 7 are newly initialised."
        assert caplog.messages == [said]
        options = {"num_labels": 7, "ignore_mismatched_sizes": True}
        ViTForImageClassification.from_pretrained(str(vit), **options)
        assert "LOAD REPORT" in caplog.text
    finally:
        library.removeHandler(caplog.handler)
        transformers_logging.set_verbosity(level)


# -- refusals ----------------------------------------------------------------------------------------------


def test_teacher_needs_its_head(vit):
    ViTModel(vit_config(), add_pooling_layer=False).save_pretrained(vit)
    with pytest.raises(InputError) as error:
        load_teacher(str(vit))
    assert_one_sentence(error, "classifier.weight", "trained classification head")
    assert load_model(str(vit), label_names=["a", "b"]).num_labels == 2  # a student may start from a backbone


@pytest.mark.parametrize("load", [load_teacher, load_model])
def test_weights_of_another_shape(vit, load):
    edit_config(vit, intermediate_size=12)
    with pytest.raises(InputError) as error:
        load(str(vit))
    assert_one_sentence(error, "mlp", "(8,)", "(12,)")


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("load", [load_teacher, load_model])
def test_pickles_are_not_read(vit, tmp_path, load):
    (vit / "model.safetensors").unlink()
    torch.save({"weight": Trap(tmp_path / "was-read")}, vit / "pytorch_model.bin")
    with pytest.raises(InputError) as error:
        load(str(vit))
    assert_one_sentence(error, "model.safetensors", "pickled")
    assert not (tmp_path / "was-read").exists()


@pytest.mark.parametrize("load", [load_teacher, load_model, lambda name: load_model(name, init="random")])
def test_remote_code_is_refused(vit, tmp_path, load):
    edit_config(vit, model_type="mine", auto_map={"AutoConfig": "m.C", "AutoModelForImageClassification": "m.M"})
    (vit / "m.py").write_text(f"open({str(tmp_path / 'was-run')!r}, 'w')\n")
    with pytest.raises(InputError) as error:
        load(str(vit))
    assert_one_sentence(error, "--trust_remote_code")
    assert not (tmp_path / "was-run").exists()


def test_processor_with_remote_code_is_refused(vit, tmp_path):
    settings = {"image_processor_type": "Mine", "auto_map": {"AutoImageProcessor": "m.Mine"}}
    (vit / "preprocessor_config.json").write_text(json.dumps(settings))
    (vit / "m.py").write_text(f"open({str(tmp_path / 'was-run')!r}, 'w')\n")
    edit_config(vit, model_type="mine")
    with pytest.raises(InputError) as error:
        load_processor(str(vit))
    assert_one_sentence(error, "--trust_remote_code")
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize(
    "break_it",
    [
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "model.safetensors").write_bytes(b"123"),
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-64]),
        lambda folder: (folder / "config.json").write_text("{"),
        lambda folder: (folder / "config.json").write_text("{}"),
        lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'),
    ],
    ids=["no weights", "no safetensors", "cut weights", "no json", "no type", "no image classifier"],
)
def test_broken_folders(vit, break_it):
    break_it(vit)
    for load in (load_teacher, load_model):
        with pytest.raises(InputError) as error:
            load(str(vit))
        assert_one_sentence(error, str(vit))


def test_random_of_what_is_no_image_classifier(vit):
    edit_config(vit, model_type="bert")
    with pytest.raises(InputError) as error:
        load_model(str(vit), init="random")
    assert_one_sentence(error, str(vit))


@pytest.mark.parametrize("load", [load_teacher, load_model, load_processor, lambda name: pin_revision(name, None)])
def test_without_a_network_what_is_missing_is_named(load):
    with pytest.raises(InputError) as error:
        load("nobody/nothing")
    assert_one_sentence(error, "nobody/nothing", "HF_HUB_OFFLINE", "it is not in the cache")


# -- image processors --------------------------------------------------------------------------------------


def test_no_processor(vit):
    (vit / "preprocessor_config.json").unlink()
    with pytest.raises(InputError) as error:
        load_processor(str(vit))
    assert_one_sentence(error, str(vit), "no image processor")


def test_processor_of_a_folder(vit, tmp_path):
    assert load_processor(str(vit)).size == {"height": 16, "width": 16}
    save_processor(ConvNextImageProcessor(size={"shortest_edge": 32}), str(vit))
    assert isinstance(load_processor(str(vit)), ConvNextImageProcessor)


def test_processor_of_a_timm_repository_is_its_own(hub, forks):
    """Size, mean and std stand in its config.json; the installed timm is asked for what is not downloaded."""
    files = hub.files("models", "timm/resnet18.a1_in1k")
    config = json.loads(files["config.json"])
    config["pretrained_cfg"] |= {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    hub.add("models", "timm/resnet18.tv_in1k", files | {"config.json": json.dumps(config).encode()})
    code = """
import json, torch
from PIL import Image
from hf_gdkd.models.loading import load_processor
from hf_gdkd.training.teacher import Teacher
from hf_gdkd.data.views import View
views = [View(load_processor("resnet18.tv_in1k", init=init)) for init in ("pretrained", "random")]
views.append(Teacher.load("resnet18.tv_in1k").view)
black = Image.new("RGB", (300, 300), "black")
print(json.dumps([(view.size, view.exact([black])[0, :, 0, 0].tolist()) for view in views]))
"""
    done = forks("python", code)
    assert done.returncode == 0, done.stderr
    own, installed, teachers = json.loads(done.stdout)
    assert own == teachers and own[0] == [32, 32]
    assert own[1] == pytest.approx([-0.1 / 0.4, -0.2 / 0.5, -0.3 / 0.6])
    assert installed[0] == [224, 224]
    assert installed[1] == pytest.approx([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225])


def test_the_main_process_alone_says_what_a_name_means(monkeypatch, capsys):
    commit = "0" * 40
    monkeypatch.setattr(models, "resolve_revision", lambda name, revision: SimpleNamespace(resolved=commit))
    for main, said in ((False, ""), (True, f"deit-tiny -> facebook/deit-tiny-patch16-224@{commit}\n")):
        monkeypatch.setattr(models, "PartialState", lambda main=main: SimpleNamespace(is_main_process=main))
        assert pin_revision("deit-tiny", None) == commit and capsys.readouterr().out == said


@pytest.mark.parametrize("kind", ["vit", "timm"])
def test_pipeline(vit, tmp_path, kind):
    name = str(vit) if kind == "vit" else "test_vit"
    model = load_model(name, label_names=ANIMALS, init="random")
    model.save_pretrained(tmp_path / "saved")
    save_processor(load_processor(name, init="random"), str(tmp_path / "saved"))
    found = pipeline("image-classification", str(tmp_path / "saved"))(Image.new("RGB", (40, 30), "blue"))
    assert {row["label"] for row in found} == set(ANIMALS)
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
