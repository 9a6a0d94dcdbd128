"""Every image classifier of transformers, and an architecture of each family of timm, through a run's stages.

    python tests/models/sweep.py            # all, about twenty minutes on two cores; prints a table
    python tests/models/sweep.py vit swin timm/resnet10t

Each is made small with random weights: view, new head, one step, save, reload, evaluate, pipeline. What cannot be
distilled is expected to be refused with one sentence (an InputError).
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from PIL import Image
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    ConvNextImageProcessor,
    Siglip2ImageProcessor,
    ViTImageProcessor,
)

from hf_gdkd import GDKDConfig, GDKDTrainer
from hf_gdkd.data.datasets import collate
from hf_gdkd.data.views import EvalTransform, View
from hf_gdkd.errors import InputError
from hf_gdkd.evaluation.measurement import size_of
from hf_gdkd.models.heads import class_names
from hf_gdkd.models.loading import load_model, load_processor, load_teacher, save_processor
from hf_gdkd.training.checkpoints import unshared
from hf_gdkd.training.teacher import logits_of

NAMES, OLD_NAMES = ["ant", "bee", "cat"], ["cat", "ant", "dog", "eel"]

ENCODER = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 32}
VIT = ENCODER | {"image_size": 32, "patch_size": 8}
DEPTHS = {"depths": [1, 1, 1, 1]}
WIDE = {"hidden_sizes": [16, 16, 32, 32]}
SWIN = {"image_size": 64, "patch_size": 2, "embed_dim": 16, "num_heads": [2, 2, 2, 2], "window_size": 4} | DEPTHS
VISION = {"vision_config": VIT, "text_config": ENCODER}

# Small configurations by model type; the size of the images is "image_size", or 64.
TRANSFORMERS: dict[str, dict] = {
    "beit": VIT,
    "bit": WIDE | DEPTHS | {"embedding_size": 16, "num_groups": 4},
    "clip": VISION | {"projection_dim": 16},
    "convnext": WIDE | DEPTHS,
    "convnextv2": WIDE | DEPTHS,
    "cvt": {"embed_dim": [16, 16, 32], "num_heads": [1, 2, 2], "depth": [1, 2, 3]},
    "data2vec-vision": VIT,
    "deit": VIT,
    "dinat": {"embed_dim": 16, "num_heads": [2, 2, 2, 2], "dilations": [[1]] * 4, "kernel_size": 3} | DEPTHS,
    "dinov2": VIT,
    "dinov2_with_registers": VIT,
    "donut-swin": SWIN,
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.2, "hidden_dim": 320},
    "focalnet": {"image_size": 64, "embed_dim": 16} | DEPTHS,
    "hgnet_v2": {},
    "hiera": {"image_size": [64, 64], "patch_stride": [4, 4], "embed_dim": 16, "num_heads": [1, 2, 2, 2]} | DEPTHS,
    "ijepa": VIT,
    "imagegpt": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64, "vocab_size": 9},
    "levit": {"image_size": 64, "hidden_sizes": [16, 16, 16], "depths": [1, 1, 1]},
    "metaclip_2": VISION | {"projection_dim": 16},
    "mobilenet_v1": {"depth_multiplier": 0.25},
    "mobilenet_v2": {"depth_multiplier": 0.35},
    "mobilevit": {"hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8] * 6 + [32], "num_attention_heads": 2},
    "mobilevitv2": {"width_multiplier": 0.25},
    "perceiver": {
        "num_latents": 4,
        "d_latents": 16,
        "num_self_attends_per_block": 1,
        "num_blocks": 1,
        "image_size": 224,
    }
    | {"num_self_attention_heads": 2, "num_cross_attention_heads": 1},
    "poolformer": WIDE | DEPTHS,
    "pp_lcnet": {"scale": 0.25},
    "pvt": WIDE | DEPTHS | {"image_size": 64, "num_attention_heads": [1, 1, 2, 2]},
    "pvt_v2": WIDE | DEPTHS | {"image_size": 64, "num_attention_heads": [1, 1, 2, 2]},
    "regnet": WIDE | DEPTHS | {"embedding_size": 16, "groups_width": 8},
    "resnet": WIDE | DEPTHS | {"embedding_size": 16, "layer_type": "basic"},
    "segformer": WIDE | DEPTHS | {"num_attention_heads": [1, 1, 2, 2], "decoder_hidden_size": 16},
    "shieldgemma2": VISION,
    "siglip": VISION,
    "siglip2": VISION,
    "swiftformer": {"embed_dims": [16, 16, 32, 32]} | DEPTHS,
    "swin": SWIN,
    "swinv2": SWIN,
    "textnet": {},
    "vit": VIT,
    "vit_msn": VIT,
}

# Small architectures of timm, from every family that has one.
TIMM = """
    cait_xxs24_224 coat_lite_tiny coat_tiny convit_tiny convmixer_768_32 convnext_atto convnextv2_atto
    cpubone_nano crossvit_tiny_240 cs3darknet_focus_s cspnext_tiny deit_tiny_distilled_patch16_224
    deit_tiny_patch16_224 densenet121 dla34 dpn48b eca_botnext26ts_256 edgenext_xx_small efficientformer_l1
    efficientformerv2_s0 efficientvim_m1 efficientvit_b0 efficientvit_m0 ese_vovnet19b_slim
    eva02_tiny_patch14_224 fasternet_t0 fastvit_t8 gcvit_xxtiny ghostnet_050 gmixer_12_224 gmlp_ti16_224
    haloregnetz_b hardcorenas_b hgnetv2_b0 hrnet_w18_small iformer_t inception_next_atto lambda_resnet26rpt_256
    lcnet_035 lcnetv2_small legacy_seresnet18 levit_128 lowformer_b0 mambaout_femto mixer_s32_224 mnasnet_small
    mobilenetv1_100 mobilenetv2_035 mobilenetv3_small_050 mobileone_s0 mobilevit_xxs mvitv2_tiny nest_tiny
    nextvit_small pit_ti_224 pit_ti_distilled_224 poolformer_s12 pvt_v2_b0 rdnet_tiny regnetx_002 regnety_002
    regnetz_005 repghostnet_050 repvgg_a0 repvit_m0_9 repvit_m1 res2net50_14w_8s resmlp_12_224 resnest14d
    resnet10t resnetv2_18 rexnetr_150 sebotnet33ts_256 selecsls42 semnasnet_050 sequencer2d_s shvit_s1
    skresnet18 starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224 test_byobnet test_coatnet test_convnext
    test_convnext2 test_convnext3 test_efficientnet test_efficientnet_evos test_efficientnet_gn
    test_efficientnet_ln test_mambaout test_maxvit test_nfnet test_resnet test_vit test_vit2 test_vit3 test_vit4
    test_vit_relpos tiny_vit_5m_224 tinynet_e twins_svt_small vgg11 visformer_tiny vit_base_patch16_siglip_224
    vit_tiny_patch16_224 vitamin_small_224 volo_d1_224 xcit_nano_12_p16_224
""".split()


class Brightness(nn.Module):
    """A teacher for images of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, len(NAMES))

    def forward(self, pixel_values):
        return self.head(pixel_values.mean((2, 3)))


def start(name: str, folder: Path) -> str:
    """The name of a student with other classes than the data; one of transformers is saved to the folder first."""
    if name.startswith("timm/"):
        model = load_model(name.removeprefix("timm/"), label_names=OLD_NAMES, init="random")
        model.save_pretrained(folder, state_dict=unshared(model.state_dict()))
        return str(folder)
    options = TRANSFORMERS[name]
    size = options.get("image_size", options.get("vision_config", {}).get("image_size", 64))
    size = size[0] if isinstance(size, list) else size
    config = AutoConfig.for_model(name, **options)
    config.num_labels, config.architectures = len(OLD_NAMES), []
    config.id2label = dict(enumerate(OLD_NAMES))
    AutoModelForImageClassification.from_config(config).save_pretrained(folder)
    if name == "convnext":
        ConvNextImageProcessor(size={"shortest_edge": size}).save_pretrained(folder)
    elif name == "siglip2":
        Siglip2ImageProcessor().save_pretrained(folder)
    else:
        ViTImageProcessor(size={"height": size, "width": size}).save_pretrained(folder)
    return str(folder)


def check(name: str, say: Callable[[str], None] = lambda stage: None) -> None:
    """Take one model through all stages; `say` is told the name of each before it begins.

    Raises:
        InputError: it is refused.
        Exception: it fails.
    """
    images = [Image.effect_noise((90, 70), 60).convert("RGB") for _ in range(4)]
    with tempfile.TemporaryDirectory() as folder:
        say("build")
        path = start(name, Path(folder, "start"))
        say("head")
        model = load_model(path, label_names=NAMES)
        say("view")
        processor = load_processor(path)
        view = View(processor)
        pixels = EvalTransform(view)({"image": images})["pixel_values"]
        rows = [{"pixel_values": row, "labels": i % len(NAMES)} for i, row in enumerate(pixels)]
        say("size")
        assert size_of(model, view)["parameters"] > 0
        say("step")
        args = GDKDConfig(
            output_dir=str(Path(folder, "run")), loss="gdkd", k=1, max_steps=1, per_device_train_batch_size=4,
            save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True, learning_rate=1e-3,
        )  # fmt: skip
        before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        trainer = GDKDTrainer(model, Brightness(), args, train_dataset=rows, eval_dataset=rows, data_collator=collate)
        trainer.train()
        assert any(not torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
        say("evaluate")
        assert "eval_loss" in trainer.evaluate()
        say("save")
        trainer.save_model()
        save_processor(processor, args.output_dir)
        say("reload")
        again = load_teacher(args.output_dir).eval()
        assert class_names(again) == NAMES
        with torch.no_grad():
            torch.testing.assert_close(logits_of(again(pixels)), logits_of(model.eval()(pixels)), rtol=1e-4, atol=1e-5)
        say("pipeline")
        found = transformers.pipeline("image-classification", args.output_dir)(images[0])
        assert {row["label"] for row in found} == set(NAMES)
        assert abs(sum(row["score"] for row in found) - 1) < 1e-3


def main(names: list[str]) -> int:
    """Print a table with a line for each model; returns how many failed."""
    transformers.logging.set_verbosity_error()
    failed = 0
    for name in names or [*TRANSFORMERS, *(f"timm/{name}" for name in TIMM)]:
        stages: list[str] = []
        begin = time.perf_counter()
        torch.manual_seed(0)
        try:
            check(name, stages.append)
            result = "good"
        except (InputError, ImportError) as error:  # refused by us, or needs a package that is not here (natten)
            result = f"refused at {stages[-1]}: {error}"
        except Exception as error:
            failed += 1
            result = f"FAILED at {stages[-1]}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        print(f"| {name} | {result} | {time.perf_counter() - begin:.1f} s |", flush=True)
    print(f"{failed} failed")
    return failed


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
