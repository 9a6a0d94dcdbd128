"""GDKDConfig: its errors, its defaults, its schedule, and that it survives JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import pydoc

import pytest
from transformers import HfArgumentParser, TrainingArguments

from hf_gdkd import GDKDConfig
from hf_gdkd.errors import InputError
from hf_gdkd.losses import FEATURE_LOSSES, LOSSES, loss_options
from hf_gdkd.training.allowed_values import RANGES
from hf_gdkd.training.config import LOSS_OPTIONS, LOSS_WEIGHTS

OWN = [
    f for f in dataclasses.fields(GDKDConfig) if f.name not in {g.name for g in dataclasses.fields(TrainingArguments)}
]


@pytest.mark.parametrize("options, said", [
    ({"loss": "gdkt"}, "did you mean 'gdkd'?"),
    ({"loss": "nonsense"}, "expected one of kd, dkd, gdkd, gdkd3, dist, mlkd"),
    ({"loss": "kd", "k": 3}, "takes no option 'k': it takes temperature, standardize"),
    ({"loss": "gdkd3", "kl": "reverse"}, "takes no option 'kl'"),
    ({"loss": "dkd", "w1": 1.0}, "takes no option 'w1': it takes temperature, alpha, beta"),
    ({"loss": "ce", "temperature": 2.0, "k": 1}, "loss ce takes no option, given temperature, k"),
    ({"k": 0}, "k is 0: expected a whole number of at least 1"),
    ({"k": 2.5}, "k is 2.5"),
    ({"loss": "gdkd3", "k": 1}, "at least 2"),
    ({"temperature": 0.0}, "temperature is 0.0: expected a finite number above 0"),
    ({"temperature": -1.0}, "temperature is -1.0"),
    ({"temperature": math.nan}, "temperature is nan"),
    ({"loss": "mlkd", "temperatures": [1.0, 0.0]}, "temperatures is 0.0"),
    ({"loss": "mlkd", "temperatures": []}, "temperatures is empty"),
    ({"w0": -0.5}, "w0 is -0.5"),
    ({"loss": "dkd", "alpha": -1.0}, "alpha is -1.0"),
    ({"loss": "dist", "gamma": math.inf}, "gamma is inf"),
    ({"class_k": [3, 0]}, "k is 0: expected a whole number of at least 1"),
    ({"class_k": [3, 1], "k": 2}, "leave k and threshold out"),
    ({"loss": "gdkd3", "threshold": 2.0}, "takes no option 'threshold'"),
    ({"loss": "fitnet", "temperature": 2.0}, "takes no option 'temperature': it takes student_layers, teacher_layers"),
    ({"loss": "rkd", "student_layers": ["a"]}, "takes no option 'student_layers'"),
    ({"ce_weight": -1.0}, "ce_weight is -1.0: use a finite number that is 0 or more"),
    ({"kd_weight": -0.1}, "kd_weight is -0.1"),
    ({"kd_weight": math.nan}, "kd_weight is nan"),
    ({"kd_weight": math.inf}, "kd_weight is inf"),
    ({"per_device_train_batch_size": 0}, "per_device_train_batch_size is 0: use a whole number of at least 1"),
    ({"per_device_eval_batch_size": -1}, "per_device_eval_batch_size is -1"),
    ({"seed": -1}, "seed is -1: use a whole number from 0 to 4294967295"),
    ({"data_seed": 2**32}, "data_seed is 4294967296"),
    ({"learning_rate": -1.0}, "learning_rate is -1.0: use a finite number that is 0 or more"),
    ({"learning_rate": math.nan}, "learning_rate is nan"),
    ({"learning_rate": "1e-3"}, "learning_rate is 1e-3: use a finite number"),
    ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps is 0"),
    ({"max_steps": 0}, "max_steps is 0: use -1 for whole epochs, or a whole number of at least 1"),
    ({"num_train_epochs": 0.0}, "num_train_epochs is 0.0: use a finite number above 0"),
    ({"dataloader_num_workers": -1}, "dataloader_num_workers is -1"),
    ({"label_smoothing_factor": 2.0}, "label_smoothing_factor is 2.0: use a number from 0 to 1"),
    ({"adam_beta1": 1.0}, "adam_beta1 is 1.0: use a number from 0 to below 1"),
    ({"ema_decay": 1.0}, "ema_decay is 1.0: use a number above 0 and below 1, such as 0.999"),
    ({"class_weights": [1.0, -1.0]}, "class_weights[1] is -1.0"),
    ({"kd_warmup_epochs": -1.0}, "kd_warmup_epochs is -1.0"),
    ({"kd_skip_epochs": -1.0}, "kd_skip_epochs is -1.0"),
    ({"kl": "sideways"}, "kl is 'sideways': expected one of forward, reverse, both"),
    ({"strategy": "middle"}, "strategy is 'middle'"),
    ({"loss": "dkd", "partition": "top2"}, "partition is 'top2'"),
    ({"standardize": "yes"}, "standardize is 'yes'"),
    ({"loss": "gdkd3", "standardize": "both"}, "standardize is 'both'"),
    ({"teacher_dtype": "int8"}, "teacher_dtype is 'int8': choose one of float32, bfloat16, float16"),
])  # fmt: skip
def test_bad_values(options, said):
    with pytest.raises(InputError) as caught:
        GDKDConfig(**options)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", RANGES)
def test_every_range_is_of_an_argument_and_holds_its_default(name):
    assert hasattr(GDKDConfig(), name)


@pytest.mark.parametrize("loss", ["ce", *LOSSES, *FEATURE_LOSSES])
def test_weights_of_the_recipes(loss):
    args = GDKDConfig(loss=loss)
    assert (args.ce_weight, args.kd_weight) == LOSS_WEIGHTS.get(loss, (1.0, 1.0))
    args = GDKDConfig(loss=loss, ce_weight=0.0, kd_weight=3.0)
    assert (args.ce_weight, args.kd_weight) == (0.0, 3.0)


def test_every_option_of_every_loss_is_a_field():
    assert set(LOSS_OPTIONS) == {option for loss in LOSSES | FEATURE_LOSSES for option in loss_options(loss)}
    assert set(LOSS_OPTIONS) <= {f.name for f in OWN}


def test_options_reach_the_loss():
    loss = GDKDConfig(loss="gdkd", k=3, temperature=2.0, w2=0.0, kl="both", strategy="worst").build_loss()
    assert (loss.k, loss.temperature, loss.kl, loss.strategy) == (3, 2.0, "both", "worst")
    assert loss.weights == {"high": 0.5, "low_top": 1.0, "low_other": 0.0}
    assert GDKDConfig(loss="ce").build_loss() is None
    assert GDKDConfig(loss="mlkd", mask_samples=False).set_loss_options() == {"mask_samples": False}


@pytest.mark.parametrize("skip, warmup, ramp", [
    (0, 0, {0: 1, 0.5: 1, 9: 1}),
    (0, 2, {0: 0, 0.5: 0.25, 1: 0.5, 2: 1, 9: 1}),
    (1, 0, {0: 0, 0.99: 0, 1: 1, 9: 1}),
    (1.5, 0.5, {0: 0, 1.5: 0, 1.75: 0.5, 2: 1, 9: 1}),
])  # fmt: skip
def test_ramp(skip, warmup, ramp):
    args = GDKDConfig(kd_skip_epochs=skip, kd_warmup_epochs=warmup)
    assert {epoch: args.ramp(epoch) for epoch in ramp} == ramp


@pytest.mark.parametrize("options", [
    {},
    {"loss": "ce"},
    {"loss": "gdkd3", "k": 4, "temperature": 2.0, "learning_rate": 1e-3, "kd_warmup_epochs": 1.5},
    {"loss": "mlkd", "temperatures": [1.0, 2.0], "mask_classes": True, "lr_scheduler_kwargs": {"a": 1}},
    {"class_k": [1, 2, 3], "coupled": True, "gamma": 1.0},
    {"loss": "fitnet", "student_layers": ["a", "b.0"], "teacher_layers": ["c", "d"]},
    {"loss": "dkd", "partition": "top1", "teacher_dtype": "bfloat16", "eval_strategy": "epoch"},
])  # fmt: skip
def test_json_round_trip(options, tmp_path):
    args = GDKDConfig(output_dir=str(tmp_path), **options)
    values = json.loads(args.to_json_string())
    assert values.pop("hub_token") == "<HUB_TOKEN>"
    again = GDKDConfig(**values)
    assert again.to_dict() == args.to_dict()
    (parsed,) = HfArgumentParser(GDKDConfig).parse_dict(values)
    assert parsed.to_dict() == args.to_dict()


def test_no_token_in_what_is_written():
    args = GDKDConfig(hub_token="hf_secret")
    for text in (args.to_json_string(), str(args), repr(args), str(args.to_sanitized_dict())):
        assert "hf_secret" not in text


@pytest.mark.parametrize("field", OWN, ids=lambda f: f.name)
def test_every_field_has_a_help_text(field):
    text = field.metadata["help"]
    assert (text.endswith(".") and text[0].isupper()) or field.name == "loss"
    assert len(text) > 20 and text % {} == text  # argparse formats it


def test_help_of_the_class_explains_every_field():
    text = pydoc.render_doc(GDKDConfig, renderer=pydoc.plaintext)
    for field in OWN:
        assert field.metadata["help"] in text and f"  {field.name} (" in text


def test_help_renders():
    text = " ".join(HfArgumentParser(GDKDConfig).format_help().split())
    for field in OWN:
        assert f"--{field.name}" in text


def test_several_gpus_in_one_process_are_refused(monkeypatch):
    """Trainer would use DataParallel."""
    monkeypatch.setattr(GDKDConfig, "n_gpu", 2)
    with pytest.raises(InputError, match=r"2 GPUs with DataParallel.*`hf-gdkd distill` or `accelerate launch`"):
        GDKDConfig()


@pytest.mark.parametrize("size, kind", [(6, "train"), (3, "train"), (6, "eval")])
def test_a_batch_that_cannot_be_split_is_refused(monkeypatch, size, kind):
    monkeypatch.setattr(GDKDConfig, "world_size", 4)
    options = {"accelerator_config": {"split_batches": True}, f"per_device_{kind}_batch_size": size}
    with pytest.raises(InputError, match=f"per_device_{kind}_batch_size {size} cannot be split among 4 processes"):
        GDKDConfig(**options)
    GDKDConfig(**options | {f"per_device_{kind}_batch_size": 8})
    GDKDConfig(**options | {"accelerator_config": {"split_batches": False}})
