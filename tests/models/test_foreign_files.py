"""Models whose files somebody else wrote: each loads rightly, or is refused with one sentence."""

import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    ImageGPTConfig,
    ImageGPTForImageClassification,
    LevitConfig,
    LevitForImageClassification,
    PvtConfig,
    PvtForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
)

from hf_gdkd.data.views import View
from hf_gdkd.errors import InputError
from hf_gdkd.models import class_names, load_model, load_processor, load_teacher

TINY = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 1}
ANIMALS = ["cat", "dog", "eel"]
TWO = ["dog", "ape"]

DOORS = {
    "teacher": lambda path: class_names(load_teacher(path)),
    "student": lambda path: class_names(load_model(path, label_names=TWO)),
    "own classes": lambda path: class_names(load_model(path)),
    "random": lambda path: class_names(load_model(path, label_names=TWO, init="random")),
}


@pytest.fixture(params=DOORS)
def door(request):
    return DOORS[request.param]


@pytest.fixture
def vit(tmp_path):
    torch.manual_seed(0)
    config = ViTConfig(**TINY, image_size=16, patch_size=8, id2label=dict(enumerate(ANIMALS)), initializer_range=0.2)
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


def edit(folder, name="config.json", **changes):
    """Change values of a file; None removes them."""
    path = Path(folder, name)
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value != "remove"}))


def rename(folder, function):
    path = Path(folder, "model.safetensors")
    tensors = {function(name): tensor for name, tensor in load_file(path).items()}
    save_file({name: tensor for name, tensor in tensors.items() if name}, path, metadata={"format": "pt"})


def refusal(call, *words):
    with pytest.raises(InputError) as error:
        call()
    text = str(error.value)
    assert "\n" not in text and len(text) < 420 and text.endswith("."), text
    for word in words:
        assert word in text, text


# -- config.json -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names, words",
    [
        ({"1": "cat", "2": "dog", "3": "eel"}, ["id2label", "the keys 1, 2, 3", "from 0 to 2"]),
        ({"0": "cat", "1": "dog", "5": "eel"}, ["id2label", "the keys 0, 1, 5"]),
        ({"0": "cat", "1": None, "2": "eel"}, ["id2label", "None as the name of class 1"]),
        ({"0": "cat", "1": ["dog"], "2": "eel"}, ["id2label", "['dog'] as the name of class 1"]),
        (["cat", "dog", "eel"], ["config.json", "correct that file"]),
        ({"cat": 0, "dog": 1, "eel": 2}, ["config.json", "correct that file"]),
        (None, ["does not fit its weights", "classifier"]),
        ({"0": "cat"}, ["does not fit its weights", "classifier"]),
    ],
)
@pytest.mark.parametrize("load", [DOORS["teacher"], DOORS["student"]], ids=["teacher", "student"])
def test_names_that_do_not_fit(vit, load, names, words):
    edit(vit, id2label=names)
    refusal(lambda: load(str(vit)), str(vit), *words)


def test_numbers_as_names(vit):
    edit(vit, id2label={"0": 7, "1": 8, "2": 9})
    assert DOORS["teacher"](str(vit)) == DOORS["own classes"](str(vit)) == ["7", "8", "9"]
    kept = load_model(str(vit), label_names=["9", "7", "8"]).classifier.weight
    torch.testing.assert_close(kept, load_teacher(str(vit)).classifier.weight[[2, 0, 1]])


@pytest.mark.parametrize(
    "changes",
    [{"hidden_size": "8"}, {"hidden_act": "nonsense"}, {"model_type": ["vit"]}, {"dtype": "nonsense"}],
    ids=lambda changes: next(iter(changes)),
)
def test_values_that_transformers_does_not_take(vit, door, changes):
    edit(vit, **changes)
    refusal(lambda: door(str(vit)), str(vit), "config.json", "correct that file")


@pytest.mark.parametrize("model_type", ["nonsense", None, "remove"])
def test_unknown_model_type(vit, door, model_type):
    edit(vit, model_type=model_type)
    refusal(lambda: door(str(vit)), "`model_type`")


def test_model_of_another_kind(vit, door):
    edit(vit, model_type="bert")
    refusal(lambda: door(str(vit)), "no image classifier", "'bert'")


def test_multi_label_models_become_single_label(vit, tmp_path):
    """Their pipeline would answer with sigmoids."""
    edit(vit, problem_type="multi_label_classification")
    for init in ("pretrained", "random"):
        for names in (TWO, ANIMALS):
            load_model(str(vit), label_names=names, init=init).save_pretrained(tmp_path / "saved")
            config = json.loads((tmp_path / "saved/config.json").read_text())
            assert config["problem_type"] == "single_label_classification"


@pytest.mark.parametrize("kind", ["deit", "levit"])
def test_several_classifiers_of_one_type(tmp_path, kind):
    if kind == "deit":
        model = DeiTForImageClassification(DeiTConfig(**TINY, image_size=16, patch_size=8))
    else:
        model = LevitForImageClassification(LevitConfig(image_size=64, hidden_sizes=[16, 16, 16], depths=[1, 1, 1]))
    model.save_pretrained(tmp_path)
    assert DOORS["student"](str(tmp_path)) == TWO
    for architectures in ("remove", None, ["Nonsense"]):
        edit(tmp_path, architectures=architectures)
        for load in (DOORS["teacher"], DOORS["student"]):
            refusal(lambda load=load: load(str(tmp_path)), "`architectures`", "ForImageClassificationWithTeacher")
        assert DOORS["random"](str(tmp_path)) == TWO


def test_pvt_keeps_no_number_of_its_own(tmp_path):
    """Its configuration has 1,000 classes beside whatever names it has."""
    config = {"image_size": 32, "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "num_attention_heads": [1] * 4}
    PvtForImageClassification(PvtConfig(**config, num_labels=3)).save_pretrained(tmp_path / "pvt")
    for init in ("pretrained", "random"):
        model = load_model(str(tmp_path / "pvt"), label_names=TWO, init=init)
        assert model.classifier.out_features == model.config.num_labels == 2
        model.save_pretrained(tmp_path / "saved")
        assert class_names(load_teacher(str(tmp_path / "saved"))) == TWO
    PvtForImageClassification(PvtConfig(**config, id2label=dict(enumerate(TWO)))).save_pretrained(tmp_path / "ten")
    refusal(lambda: load_teacher(str(tmp_path / "ten")), "id2label", "1000")


def test_models_that_take_no_images(tmp_path, door):
    config = ImageGPTConfig(n_embd=8, n_layer=1, n_head=1, n_positions=16, vocab_size=9)
    ImageGPTForImageClassification(config).save_pretrained(tmp_path)
    refusal(lambda: door(str(tmp_path)), "input_ids instead of pixel_values")


def test_grey_models(vit, door):
    edit(vit, num_channels=1)
    refusal(lambda: door(str(vit)), "1 channel", "RGB")


# -- weights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"_orig_mod.module.{name}",
        lambda name: name.replace("layer.0.", "layer.0._orig_mod."),
    ],
    ids=["DDP", "compiled", "DDP of compiled", "compiled of DDP", "layer compiled"],
)
def test_names_with_the_prefixes_of_wrappers(vit, tmp_path, wrap):
    right, names = load_teacher(str(vit)).state_dict(), load_file(vit / "model.safetensors").keys()
    rename(vit, wrap)
    assert load_file(vit / "model.safetensors").keys() != names
    for load in (load_teacher, load_model):
        model = load(str(vit))
        torch.testing.assert_close(model.state_dict(), right, rtol=0, atol=0)
        model.save_pretrained(tmp_path / "saved")
        assert load_file(tmp_path / "saved/model.safetensors").keys() == names  # not with the prefix again


def test_timm_names_with_a_prefix(tmp_path):
    model = load_model("test_resnet", label_names=ANIMALS, init="random")
    model.save_pretrained(tmp_path)
    rename(tmp_path, lambda name: f"_orig_mod.{name}")
    torch.testing.assert_close(load_model(str(tmp_path)).state_dict(), model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    "change",
    [lambda name: f"backbone.{name}", lambda name: "" if "layer.0.output" in name else name],
    ids=["other names", "a layer less"],
)
@pytest.mark.parametrize("names", [ANIMALS, TWO], ids=["same classes", "other classes"])
def test_a_student_without_its_backbone(vit, change, names):
    rename(vit, change)
    refusal(lambda: load_model(str(vit), label_names=names), "lacks", "tensors, such as vit.", "--student_init random")


def test_a_student_from_a_backbone(vit, caplog):
    """The head alone is random, and none of its rows is said to be kept."""
    backbone = ViTModel.from_pretrained(vit, add_pooling_layer=False)
    backbone.save_pretrained(vit)
    model = load_model(str(vit), label_names=["LABEL_1", "LABEL_0"])
    torch.testing.assert_close(model.vit.state_dict(), backbone.state_dict(), rtol=0, atol=0)
    assert "0 of 2 classes keep" in caplog.text


def test_rows_that_are_not_kept_are_new_where_the_number_stays(vit):
    old = load_teacher(str(vit)).classifier.weight
    new = load_model(str(vit), label_names=["eel", "ape", "bat"]).classifier.weight
    torch.testing.assert_close(new[0], old[2])
    assert not any(torch.equal(row, other) for row in new[1:] for other in old)


# -- what timm saved ---------------------------------------------------------------------------------------


def saved_by_timm(folder, **options):
    model = timm.create_model("test_vit", **options)
    names = options.pop("label_names", ANIMALS)
    save_for_hf(model, folder, safe_serialization=True, model_config={"label_names": names} if names else None)
    return model.eval()


def test_saved_by_timm(tmp_path):
    model = saved_by_timm(tmp_path / "timm", num_classes=3)
    pixels = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(load_teacher(str(tmp_path / "timm")).eval()(pixels).logits, model(pixels))
    assert DOORS["teacher"](str(tmp_path / "timm")) == ANIMALS
    for init in ("pretrained", "random"):
        load_model(str(tmp_path / "timm"), label_names=TWO, init=init).save_pretrained(tmp_path / "saved")
        assert class_names(load_teacher(str(tmp_path / "saved"))) == TWO


def test_names_of_timm_by_index(tmp_path):
    saved_by_timm(tmp_path, num_classes=3)
    edit(tmp_path, label_names={"2": "eel", "0": "cat", "1": "dog"})
    assert DOORS["teacher"](str(tmp_path)) == ANIMALS


def test_grey_timm_models(tmp_path, door):
    saved_by_timm(tmp_path, num_classes=3, in_chans=1)
    refusal(lambda: door(str(tmp_path)), "1 channel", "RGB")


def test_timm_backbones(tmp_path):
    saved_by_timm(tmp_path, num_classes=0)
    edit(tmp_path, label_names="remove")
    assert DOORS["student"](str(tmp_path)) == DOORS["random"](str(tmp_path)) == TWO
    refusal(lambda: load_teacher(str(tmp_path)), "trained classification head")
    refusal(lambda: load_model(str(tmp_path)), "no classes", "label_names")


# -- preprocessor_config.json ------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["[]", "{", '{"image_processor_type": "Nonsense"}', '{"size": "16"}'])
def test_image_processors(vit, content):
    (vit / "preprocessor_config.json").write_text(content)
    edit(vit, model_type="nonsense" if "Nonsense" in content else "vit")
    refusal(lambda: load_processor(str(vit)), str(vit), "preprocessor_config.json")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"resample": None}, ["`resample`", "correct that file"]),
        ({"resample": 99}, ["99", "correct that file"]),
        ({"size": {"shortest_edge": 16}}, ["16 x 16 and 16 x 20", "do_center_crop"]),
        ({"size": {"shortest_edge": 16}, "do_resize": False}, ["different sizes", "set size to a height and a width"]),
        ({"image_mean": None}, ["image_mean", "correct that file"]),
        ({"image_std": [0, 0.5, 0.5]}, ["finite", "image_std"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_image_processors_that_make_no_view(vit, changes, words):
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(vit)
    edit(vit, "preprocessor_config.json", **changes)
    refusal(lambda: View(load_processor(str(vit))), *words)


def test_image_processors_that_do_not_resize(vit):
    ViTImageProcessor(size={"height": 16, "width": 24}, do_resize=False).save_pretrained(vit)
    edit(vit, "preprocessor_config.json", resample=None)
    view = View(load_processor(str(vit)))
    assert view.size == (16, 24) and view.exact([Image.new("RGB", (24, 16))]).shape == (1, 3, 16, 24)
    refusal(lambda: view.exact([Image.new("RGB", (16, 16))]), "16 x 16", "16 x 24", "do_resize")


# -- memory ------------------------------------------------------------------------------------------------


def test_a_new_head_takes_no_second_model(vit, monkeypatch):
    """The models that find out what the head is are built without memory."""
    built = []
    init = ViTForImageClassification.__init__

    def counted(self, config):
        init(self, config)
        built.append(next(self.parameters()).device.type)

    monkeypatch.setattr(ViTForImageClassification, "__init__", counted)
    load_model(str(vit), label_names=TWO)
    assert set(built) == {"meta"}  # from_pretrained puts the weights of the file in their place
