"""Every semantic segmentation model of transformers, with several backbones, through what a run does with it.

    python tests/models/segmentation_sweep.py            # all, about two minutes on two cores; prints a table
    python tests/models/segmentation_sweep.py beit upernet/swin

Each is made small with random weights: new head, one step, save, reload with equal logits, pipeline.
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
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForSemanticSegmentation
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

from hf_gdkd.errors import InputError
from hf_gdkd.models import load_processor, load_segmentation_teacher, load_segmenter, segment
from hf_gdkd.models.heads import class_names
from hf_gdkd.models.loading import save_processor

NAMES, OLD_NAMES = ["road", "car", "sky"], ["sky", "road", "tree", "person"]

VIT = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 4, "intermediate_size": 32} | {
    "image_size": 64,
    "patch_size": 8,
}
WIDE = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
STAGES = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
UPERNET = {"hidden_size": 8, "auxiliary_channels": 8, "auxiliary_in_channels": 16}
SWIN = {"image_size": 64, "patch_size": 2, "embed_dim": 8, "num_heads": [1, 1, 2, 2], "window_size": 4}

# Small configurations by model type, and for UperNet by backbone.
TRANSFORMERS: dict[str, dict] = {
    "beit": VIT | {"out_indices": [1, 2, 3, 4], "auxiliary_channels": 8},
    "data2vec-vision": VIT | {"out_indices": [1, 2, 3, 4], "auxiliary_channels": 8},
    "dpt": VIT | {"backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 8},
    "dpt/hybrid": VIT
    | {
        "is_hybrid": True,
        "patch_size": 16,
        "backbone_config": {"model_type": "bit", "depths": [1, 1, 1], "embedding_size": 8, "num_groups": 4}
        | {"hidden_sizes": [8, 8, 16], "out_features": ["stage1", "stage2", "stage3"]},
        "backbone_featmap_shape": [1, 16, 8, 8],
        "backbone_out_indices": [0, 1, 2, 3],
        "neck_hidden_sizes": [8, 8, 16, 16],
        "fusion_hidden_size": 8,
    },
    "mobilenet_v2": {"depth_multiplier": 0.35},
    "mobilevit": {
        "hidden_sizes": [16, 16, 16],
        "neck_hidden_sizes": [8] * 6 + [32],
        "num_attention_heads": 2,
        "aspp_out_channels": 8,
    },
    "mobilevitv2": {"width_multiplier": 0.25, "aspp_out_channels": 8},
    "sapiens2": VIT
    | {"num_key_value_attention_heads": 1, "head_config": {"upsample_out_channels": [8, 8], "conv_out_channels": [8]}},
    "segformer": WIDE | {"num_attention_heads": [1, 1, 2, 2], "decoder_hidden_size": 8},
    "tipsv2_dpt": {
        "backbone_config": VIT
        | {"model_type": "tipsv2_vision_model", "out_indices": [1, 2, 3, 4]}
        | {"apply_layernorm": True, "reshape_hidden_states": False},
        "neck_hidden_sizes": [8, 8, 16, 16],
        "fusion_hidden_size": 8,
    },
    "upernet/resnet": UPERNET
    | {"backbone_config": WIDE | STAGES | {"model_type": "resnet", "embedding_size": 8, "layer_type": "basic"}},
    "upernet/convnext": UPERNET | {"backbone_config": WIDE | STAGES | {"model_type": "convnext"}},
    "upernet/swin": UPERNET
    | {"auxiliary_in_channels": 32, "backbone_config": SWIN | STAGES | {"depths": [1] * 4, "model_type": "swin"}},
    "upernet/timm": UPERNET
    | {
        "auxiliary_in_channels": 192,
        "backbone_config": {"model_type": "timm_backbone", "backbone": "test_resnet", "out_indices": [1, 2, 3, 4]},
    },
}


def start(name: str, folder: Path) -> str:
    """A folder with a small random model of other classes than the data, and its image processor."""
    config = AutoConfig.for_model(name.split("/")[0], **TRANSFORMERS[name], id2label=dict(enumerate(OLD_NAMES)))
    AutoModelForSemanticSegmentation.from_config(config).save_pretrained(folder)
    processor = IMAGE_PROCESSOR_MAPPING[type(config)]["torchvision"]
    processor(size={"height": 64, "width": 64}, do_center_crop=False).save_pretrained(folder)
    return str(folder)


def check(name: str, say: Callable[[str], None] = lambda stage: None) -> None:
    """Take one model through all stages; `say` is told the name of each before it begins.

    Raises:
        InputError: it is refused.
        Exception: it fails.
    """
    image = Image.effect_noise((90, 70), 60).convert("RGB")
    with tempfile.TemporaryDirectory() as folder:
        say("build")
        path = start(name, Path(folder, "start"))
        say("head")
        model = load_segmenter(path, label_names=NAMES)
        say("processor")
        processor = load_processor(path)
        pixels = processor([image] * 2, return_tensors="pt")["pixel_values"]
        assert pixels.shape == (2, 3, 64, 64)
        say("step")
        before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        logits, auxiliary = segment(model.train(), pixels)
        labels = torch.randint(0, 3, (2, 64, 64))
        labels[:, :8] = 255
        loss = sum(
            weight * F.cross_entropy(F.interpolate(each, (64, 64), mode="bilinear"), labels, ignore_index=255)
            for each, weight in [(logits, 1.0), *auxiliary]
        )
        assert logits.shape[:2] == (2, 3) and loss.isfinite()
        loss.backward()
        torch.optim.SGD(model.parameters(), 0.1).step()
        assert any(not torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
        say("save")
        model.save_pretrained(Path(folder, "run"))
        save_processor(processor, str(Path(folder, "run")))
        say("reload")
        again = load_segmentation_teacher(str(Path(folder, "run"))).eval()
        assert class_names(again) == NAMES
        with torch.no_grad():
            torch.testing.assert_close(again(pixels).logits, model.eval()(pixels).logits, rtol=1e-4, atol=1e-5)
        say("pipeline")
        found = transformers.pipeline("image-segmentation", str(Path(folder, "run")))(image)
        assert {row["label"] for row in found} <= set(NAMES) and found[0]["mask"].size == image.size


def main(names: list[str]) -> int:
    """Print a table with a line for each model; returns how many failed."""
    transformers.logging.set_verbosity_error()
    failed = 0
    for name in names or TRANSFORMERS:
        stages: list[str] = []
        begin = time.perf_counter()
        torch.manual_seed(0)
        try:
            check(name, stages.append)
            result = "good"
        except InputError as error:
            result = f"refused at {stages[-1]}: {error}"
        except Exception as error:
            failed += 1
            result = f"FAILED at {stages[-1]}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        print(f"| {name} | {result} | {time.perf_counter() - begin:.1f} s |", flush=True)
    print(f"{failed} failed")
    return failed


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
