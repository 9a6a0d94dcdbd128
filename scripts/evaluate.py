"""Measure a model on a data set, and its agreement with a teacher.

    python scripts/evaluate.py --model runs/student --dataset digits --teacher runs/digits-teacher

Prints and writes (`--output`, by default evaluation.json in the model's folder) top-1, top-5, negative
log-likelihood in nats, expected calibration error, parameters, FLOPs and images a second, for both models.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # evaluate.py in this folder must not stand in for the library evaluate

import json
import logging
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers.utils import logging as transformers_logging

from hf_gdkd.cli import run
from hf_gdkd.data import Data, check_images, load_data
from hf_gdkd.evaluation import predict, size_of
from hf_gdkd.labels import match_labels
from hf_gdkd.metrics import Agreement, ImageClassification
from hf_gdkd.models import class_names, load_processor, load_teacher
from hf_gdkd.views import View


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Measure; returns what the JSON holds: the numbers by model."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="Hub id, short name, timm id or local folder")
    parser.add_argument("--dataset", required=True, help="Hub id, local folder, or digits")
    parser.add_argument("--split", help="default: validation, valid, val or test")
    parser.add_argument("--teacher", help="model to agree with, likewise named")
    parser.add_argument("--image_column")
    parser.add_argument("--label_column")
    parser.add_argument("--revision", help="branch, tag or commit of the model")
    parser.add_argument("--teacher_revision", help="branch, tag or commit of the teacher")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", help="JSON file to write")
    options = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()

    columns = {"image_column": options.image_column, "label_column": options.label_column}
    data = load_data(options.dataset, eval_split=options.split, require_labels=True, **columns)
    check_images(data.eval, f"data set {data.name}:")

    logits, numbers = measure(options.model, options.revision, data, options.batch_size, options.device)
    results = {options.model: numbers}
    if options.teacher is not None:
        teacher_logits, results[options.teacher] = measure(
            options.teacher, options.teacher_revision, data, options.batch_size, options.device
        )
        numbers |= Agreement(keep_in_memory=True).compute(predictions=logits, references=teacher_logits)

    for name, numbers in results.items():
        print(f"{name} on {data.name} ({data.eval_split}, {len(data.eval)} images)")
        print("".join(f"  {key:20} {value:.6g}\n" for key, value in numbers.items()), end="")
    folder = Path(options.model) if Path(options.model).is_dir() else Path()
    output = Path(options.output or folder / "evaluation.json")
    output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"written to {output}")
    return results


def measure(
    name: str, revision: str | None, data: Data, batch_size: int, device: str
) -> tuple[np.ndarray, dict[str, float]]:
    """Logits in the data set's label space, and the numbers of one model."""
    model, view = load_teacher(name, revision=revision), View(load_processor(name, revision=revision))
    logits, labels, speed = predict(model, data.eval, view, batch_size=batch_size, device=device)
    logits = logits[:, match_labels(class_names(model), data.label_names, source_name=name, target_name=data.name)]
    numbers = ImageClassification(keep_in_memory=True).compute(predictions=logits, references=labels)
    return logits, numbers | size_of(model, view) | {"images_per_second": speed}


if __name__ == "__main__":
    run(main)
