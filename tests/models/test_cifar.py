"""The paper's CIFAR networks: sizes as published, wiring, initialisation, saving, the Auto classes."""

import json
import logging
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from hf_gdkd.data.views import View
from hf_gdkd.errors import InputError
from hf_gdkd.models.cifar import NAMES
from hf_gdkd.models.cifar.families import BUILD, ShuffleV1Block
from hf_gdkd.models.cifar.modeling import CifarConfig, CifarForImageClassification
from hf_gdkd.models.loading import load_model, load_processor, load_teacher, pin_revision

FACTS = json.loads(Path(__file__).with_name("cifar_models.json").read_text())
ONE_OF_EACH = ["resnet8", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2", "ResNet18"]


def network(name, labels=100, seed=0):
    torch.manual_seed(seed)
    return CifarForImageClassification(CifarConfig(architecture=name, num_labels=labels))


def pixels(n=2):
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_every_network_is_there():
    assert set(NAMES) == set(FACTS) == set(BUILD)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_parameters_and_features(name):
    """The counts and shapes of the published networks at 100 classes."""
    model, facts = network(name).eval(), FACTS[name]
    assert sum(p.numel() for p in model.parameters()) == facts["params"]
    output = model(pixels(), output_hidden_states=True)
    assert [list(h.shape[1:]) for h in output.hidden_states] == facts["feats"]
    hidden_states, pooled = model.features(pixels())
    assert pooled.shape == (2, facts["pooled"])
    torch.testing.assert_close(hidden_states, output.hidden_states)
    torch.testing.assert_close(model.classifier(pooled), output.logits)


def test_forward_gives_what_was_asked_for():
    model, labels = network("resnet8", 5).eval(), torch.tensor([1, 4])
    plain, asked = model(pixels()), model(pixels(), labels=labels, output_hidden_states=True, return_dict=False)
    assert plain.loss is None and plain.hidden_states is None
    loss, logits, hidden_states = asked
    torch.testing.assert_close(logits, plain.logits)
    torch.testing.assert_close(loss, F.cross_entropy(plain.logits, labels))
    assert len(hidden_states) == 4


def for_small_images(model, kernel):
    """torchvision's network for ImageNet with a stem for small images."""
    stem = model.conv1 if isinstance(model.conv1, nn.Conv2d) else model.conv1[0]
    small = nn.Conv2d(3, stem.out_channels, kernel, padding=kernel // 2, bias=False)
    if stem is model.conv1:
        model.conv1 = small
    else:
        model.conv1[0] = small
    model.maxpool = nn.Identity()
    return model


@pytest.mark.parametrize(
    "name, build, kernel",
    [
        ("ResNet18", torchvision.models.resnet18, 3),
        ("ResNet50", torchvision.models.resnet50, 3),
        ("ShuffleV2", torchvision.models.shufflenet_v2_x1_0, 1),
    ],
)
@torch.no_grad()
def test_equals_torchvision_but_for_the_stem(name, build, kernel):
    ours, theirs = network(name, 10).eval(), for_small_images(build(num_classes=10), kernel).eval()
    for tensor, source in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        tensor.copy_(source)
    torch.testing.assert_close(ours(pixels()).logits, theirs(pixels()))


@torch.no_grad()
def test_wide_block_is_pre_activated():
    """Its shortcut convolves the activated input; where nothing changes shape, the input itself is added."""
    model = network("wrn_16_2").eval()
    first, second = model.stages[2]
    x = torch.randn(2, 32, 8, 8)
    a = F.relu(F.batch_norm(x, first.norm1.running_mean, first.norm1.running_var))
    inner = F.relu(F.batch_norm(F.conv2d(a, first.conv1.weight, None, 2, 1), first.norm2.running_mean,
                                first.norm2.running_var))  # fmt: skip
    shortcut = F.conv2d(a, first.downsample.conv.weight, None, 2)
    torch.testing.assert_close(first(x), F.conv2d(inner, first.conv2.weight, None, 1, 1) + shortcut)
    second.conv2.weight.zero_()
    y = torch.randn(2, 64, 4, 4)
    torch.testing.assert_close(second(y), y)


def test_shuffle_mixes_the_groups():
    """Every group of a ShuffleNet unit's output depends on every group of its input."""
    torch.manual_seed(0)
    block, x = ShuffleV1Block(240, 240, 1).eval(), torch.randn(1, 240, 4, 4)
    jacobian = torch.autograd.functional.jacobian(lambda x: block(x).sum((0, 2, 3)), x).abs().sum((1, 3, 4))
    assert (jacobian.view(3, 80, 3, 80).sum((1, 3)) > 0).all()


# Initialisation


def is_normal(weight, std):
    bound = math.sqrt(3) * std  # a uniform distribution of this standard deviation ends here
    return abs(weight.std().item() / std - 1) < 0.1 and weight.abs().max() > 1.3 * bound


def is_torch_default(weight):
    bound = 1 / math.sqrt(weight[0].numel())
    return 0.9 * bound < weight.abs().max() <= bound and abs(weight.std().item() * math.sqrt(3) / bound - 1) < 0.1


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_initialisation_as_published(name):
    model = network(name)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 4000:
            std = math.sqrt(2 / (module.out_channels * module.weight[0, 0].numel()))
            assert is_torch_default(module.weight) if "Shuffle" in name else is_normal(module.weight, std)
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            assert not module.bias.any()
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and not module.bias.any()
            assert not module.running_mean.any() and (module.running_var == 1).all()
    weight, bias = model.classifier.weight, model.classifier.bias
    if name in ("vgg8", "MobileNetV2"):
        assert is_normal(weight, 0.01) and not bias.any()
    else:
        assert is_torch_default(weight) and bias.any() == (name != "wrn_16_1")


# Names


def test_names_ignore_case():
    assert CifarConfig(architecture="SHUFFLEv1").architecture == "ShuffleV1"
    assert load_model("cifar/WRN_16_1", init="random").config.architecture == "wrn_16_1"


def test_unknown_architecture():
    with pytest.raises(InputError, match=r"no CIFAR network 'vgg12': did you mean vgg1\d"):
        CifarConfig(architecture="vgg12")
    with pytest.raises(InputError, match="choose one of resnet8, "):
        CifarConfig(architecture="qqqq")


def test_a_name_is_an_architecture_without_weights(caplog, capsys):
    with caplog.at_level(logging.WARNING):
        model = load_model("cifar/resnet8", label_names=["a", "b", "c"])
    assert [r.getMessage() for r in caplog.records] == [
        "cifar/resnet8 has no pretrained weights: it starts from random ones."
    ]
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"} and model.config.label2id == {"a": 0, "b": 1, "c": 2}
    assert load_model("cifar/resnet8", init="random").num_labels == 100
    with pytest.raises(InputError, match=r"teacher cifar/resnet8 has no weights: train it first \(--student"):
        load_teacher("cifar/ResNet8")
    assert pin_revision("cifar/resnet8", None) is None and capsys.readouterr().out == ""


def test_processor(tmp_path):
    """It turns a colour into (colour / 255 - mean) / std, at 32 x 32."""
    load_processor("cifar/resnet8").save_pretrained(tmp_path)
    view = View(AutoImageProcessor.from_pretrained(tmp_path))
    assert view.size == (32, 32) and view.channels == [0, 1, 2]
    image = Image.fromarray(np.full((32, 32, 3), (255, 0, 128), np.uint8))
    expected = [(1 - 0.5071) / 0.2675, -0.4867 / 0.2565, (128 / 255 - 0.4408) / 0.2761]
    torch.testing.assert_close(view.exact([image])[0, :, 5, 9], torch.tensor(expected))


# Saving, and the Auto classes


LOAD = """
import sys, hf_gdkd.models.cifar.modeling
from pathlib import Path
from transformers import AutoModelForImageClassification, pipeline
import torch
folder = Path(sys.argv[1])
for path in sorted(folder.glob("*/config.json")):
    model = AutoModelForImageClassification.from_pretrained(path.parent)
    assert not model.training
    with torch.no_grad():
        logits = model(torch.load(folder / "pixels.pt")).logits
    torch.testing.assert_close(logits, torch.load(path.parent / "logits.pt"))
    print(path.parent.name, model.config.id2label[2])
answer = pipeline("image-classification", str(folder / "resnet8"))(str(folder / "image.png"))
print(sorted(row["label"] for row in answer))
"""


def test_saved_networks_load_in_a_fresh_process(tmp_path):
    torch.save(pixels(), tmp_path / "pixels.pt")
    Image.new("RGB", (50, 40), "red").save(tmp_path / "image.png")
    for name in ONE_OF_EACH:
        model = load_model(f"cifar/{name}", label_names=["ant", "bee", "cat"], init="random")
        model(pixels(8))  # running statistics of their own
        model.eval().save_pretrained(tmp_path / name)
        load_processor(f"cifar/{name}").save_pretrained(tmp_path / name)
        with torch.no_grad():
            torch.save(model(pixels()).logits, tmp_path / name / "logits.pt")
    done = subprocess.run([sys.executable, "-c", LOAD, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [*(f"{name} cat" for name in sorted(ONE_OF_EACH)), "['ant', 'bee', 'cat']"]
    assert "not supported" not in done.stderr


def test_from_config():
    config = AutoConfig.for_model("gdkd_cifar", architecture="resnet8", num_labels=7)
    model = AutoModelForImageClassification.from_config(config)
    assert isinstance(model, CifarForImageClassification) and model.classifier.out_features == 7
