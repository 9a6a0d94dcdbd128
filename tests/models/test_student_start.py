"""Students that start from their teacher's weights: which tensors they get, and where that is refused."""

import pytest
import torch
from refusals import refusal
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from hf_gdkd.models import load_model, start_from_teacher
from hf_gdkd.models.configuration import with_options

ANIMALS, SHUFFLED = ["cat", "dog", "eel"], ["eel", "cat", "dog"]
WIDE = {"hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 32, "image_size": 16, "patch_size": 8}
NARROW = WIDE | {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}
RESNET = {"embedding_size": 4, "hidden_sizes": [4, 8], "layer_type": "basic"}
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "num_heads": [1, 2], "window_size": 4}
SEGFORMER = {"num_encoder_blocks": 2, "depths": [3, 1], "sr_ratios": [2, 1], "hidden_sizes": [4, 8]}
SEGFORMER |= {"patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2]}
TIMM = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "num_heads": 2}


def make(kind, config, names=ANIMALS, seed=0, **options):
    """A model whose every tensor is random, those included that begin at 0 or 1."""
    torch.manual_seed(seed)
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    return randomized(kind(config(**options, **labels)))


def randomized(model):
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.1, 1)
    return model.eval()


def vit(names=ANIMALS, seed=0, **options):
    return make(ViTForImageClassification, ViTConfig, names, seed, **WIDE | options)


def timm_vit(depth, names=ANIMALS, seed=0):
    torch.manual_seed(seed)
    name = "timm/vit_tiny_patch16_224"
    return randomized(load_model(name, label_names=names, init="random", config=TIMM | {"depth": depth}))


def resnet(depths, names=ANIMALS, seed=0, **options):
    options = RESNET | options
    return make(ResNetForImageClassification, ResNetConfig, names, seed, depths=depths, **options)


def swin(depths, names=ANIMALS, seed=0):
    return make(SwinForImageClassification, SwinConfig, names, seed, depths=depths, **SWIN)


def cifar(name, names=ANIMALS, seed=0):
    torch.manual_seed(seed)
    return randomized(load_model(name, label_names=names, init="random"))


# Teacher, student, and the student's lists of blocks with the numbers of the teacher's.
SHALLOWER = {
    "DistilBERT's 6 of 12": (lambda: vit(num_hidden_layers=12), lambda: vit(seed=1, num_hidden_layers=6),
                             {"vit.layers.": [0, 2, 4, 7, 9, 11]}),
    "one block": (lambda: vit(num_hidden_layers=4), lambda: vit(seed=1, num_hidden_layers=1),
                  {"vit.layers.": [0]}),
    "timm": (lambda: timm_vit(4), lambda: timm_vit(3, seed=1), {"timm_model.blocks.": [0, 2, 3]}),
    "resnet": (lambda: resnet([3, 4]), lambda: resnet([2, 2], seed=1),
               {"resnet.encoder.stages.0.layers.": [0, 2], "resnet.encoder.stages.1.layers.": [0, 3]}),
    "swin": (lambda: swin([2, 6]), lambda: swin([2, 2], seed=1), {"swin.encoder.layers.1.blocks.": [0, 5]}),
    "the paper's": (lambda: cifar("cifar/resnet32"), lambda: cifar("cifar/resnet20", seed=1),
                    {f"stages.{i}.": [0, 2, 4] for i in (1, 2, 3)}),
}  # fmt: skip


@pytest.mark.parametrize("case", SHALLOWER)
def test_a_shallower_student_has_evenly_spaced_blocks_and_all_the_rest(case):
    make_teacher, make_student, blocks = SHALLOWER[case]
    teacher, student = make_teacher(), make_student()
    start_from_teacher(student, teacher)
    theirs = teacher.state_dict()
    for name, tensor in student.state_dict().items():
        for place, numbers in blocks.items():
            if name.startswith(place):
                number, _, rest = name.removeprefix(place).partition(".")
                name = f"{place}{numbers[int(number)]}.{rest}"
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("build", [vit, lambda **o: resnet([2, 3], **o), lambda **o: timm_vit(2, **o)])
def test_a_student_of_the_same_size_answers_as_the_teacher_does(build):
    teacher, student = build(), build(names=SHUFFLED, seed=1)
    start_from_teacher(student, teacher)
    pixels = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(student(pixels).logits, teacher(pixels).logits[:, [2, 0, 1]])


def test_a_narrower_student_has_evenly_spaced_elements_of_the_first_blocks():
    teacher, student = vit(num_hidden_layers=3), vit(seed=1, num_hidden_layers=2, **NARROW)
    start_from_teacher(student, teacher)
    theirs, own = teacher.state_dict(), student.state_dict()
    for name in (name for name in own if ".layers." in name):  # the first 2 of 3 blocks: the same names
        assert torch.equal(own[name], theirs[name][tuple(slice(None, None, 2) for _ in theirs[name].shape)]), name
    for name in ("cls_token", "position_embeddings"):
        name = f"vit.embeddings.{name}"
        assert torch.equal(own[name], theirs[name][..., ::2]), name
    patches = "vit.embeddings.patch_embeddings.projection.weight"
    assert torch.equal(own[patches], theirs[patches][::2])
    assert torch.equal(own["classifier.weight"], theirs["classifier.weight"][:, ::2])
    assert torch.equal(own["classifier.bias"], theirs["classifier.bias"])


def test_widths_that_do_not_divide_each_other_are_spread_from_the_first_to_the_last():
    teacher, student = resnet([1, 1], hidden_sizes=[4, 12]), resnet([1, 1], seed=1, hidden_sizes=[4, 8])
    start_from_teacher(student, teacher)
    own, theirs = (model.state_dict()["classifier.1.weight"] for model in (student, teacher))
    assert torch.equal(own, theirs[:, [0, 2, 3, 5, 6, 8, 9, 11]])  # 11 / 7 = 1.57 apart


def test_of_the_head_the_classes_that_match_are_copied(caplog):
    teacher, student = vit(), vit(names=["dog", "newt", "cat"], seed=1)
    before = student.classifier.weight.clone()
    start_from_teacher(student, teacher)
    assert torch.equal(student.classifier.weight[[0, 2]], teacher.classifier.weight[[1, 0]])
    assert torch.equal(student.classifier.weight[1], before[1])
    assert "2 of 3 classes of its head" in caplog.text
    start_from_teacher(student, teacher, {"newt": "eel"})
    assert torch.equal(student.classifier.bias, teacher.classifier.bias[[1, 2, 0]])


def test_a_segmenter():
    teacher = make(SegformerForSemanticSegmentation, SegformerConfig, **SEGFORMER)
    student = make(SegformerForSemanticSegmentation, SegformerConfig, seed=1, **SEGFORMER | {"depths": [2, 1]})
    start_from_teacher(student, teacher)
    theirs = {name.replace("stages.0.blocks.2.", "stages.0.blocks.1."): t for name, t in teacher.state_dict().items()}
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in student.state_dict().items())


REFUSED = {
    "a CNN": (lambda: resnet([1, 1]), "the student is a resnet and the teacher a vit"),
    "another patch size": (lambda: vit(patch_size=4), "position_embeddings is (1, 17, 16)", "by more than width"),
    "another image size": (lambda: vit(image_size=32), "by more than width"),
    "a deeper one": (lambda: vit(num_hidden_layers=13), "has 13 blocks in the student and 12 in the teacher"),
    "a wider one": (lambda: vit(hidden_size=32), "the student is wider"),
    "more parts": (lambda: vit(qkv_bias=False), "the teacher has", "bias and the student has not"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_correspond_is_refused_and_left_alone(case):
    build, *words = REFUSED[case]
    teacher, student = vit(seed=1), build()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    refusal(lambda: start_from_teacher(student, teacher), "cannot start from the teacher's weights", *words)
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


def test_stages_are_not_blocks():
    teacher = resnet([1, 1, 1], hidden_sizes=[4, 8, 16])
    refusal(lambda: start_from_teacher(resnet([1, 1]), teacher), "2 parts in the student and 3", "not alike")


def test_init_teacher_needs_a_teacher():
    refusal(lambda: load_model("cifar/resnet20", init="teacher"), "init is 'teacher'", "and a teacher")
    refusal(lambda: load_model("cifar/resnet20", init="teachr"), "init is 'teachr'", "pretrained, random, teacher")
    teacher = cifar("cifar/resnet32")
    student = load_model("cifar/resnet20", label_names=ANIMALS, init="teacher", teacher=teacher)
    assert torch.equal(student.classifier.weight, teacher.classifier.weight)


@pytest.mark.parametrize("name", ["checkpoint_path", "pretrained", "features_only", "cache_dir", "num_classes"])
def test_a_configuration_of_timm_cannot_name_files_or_weights(name):
    refusal(lambda: load_model("timm/resnet18", init="random", config={name: "x"}), f"has no {name} to change")


def test_a_configuration_is_changed_by_its_own_names_alone():
    changed = with_options(ViTConfig(), {"num_hidden_layers": 3, "qkv_bias": False}, "it")
    assert (changed.num_hidden_layers, changed.qkv_bias) == (3, False)
    for name in ("num_layer", "auto_map", "id2label", "architectures", "_name_or_path", "to_dict"):
        refusal(lambda name=name: with_options(ViTConfig(), {name: 1}, "it"), f"has no {name} to change")
    refusal(lambda: with_options(ViTConfig(), {"hidden_size": "many"}, "it"), "hidden_size cannot be 'many'")
