"""Measure a model on a data set, beside its teacher and a baseline.

    python scripts/evaluate.py --model runs/student --dataset digits --teacher runs/digits-teacher

Prints and writes (`--output`, by default evaluation.json in the model's folder) top-1, top-5, negative log-likelihood
in nats, expected calibration error, parameters, FLOPs and images a second of every model, and the agreement of model
and baseline with the teacher.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # evaluate.py in this folder must not stand in for the library evaluate

import json
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

import torch

from hf_gdkd.commands.running import quiet, run
from hf_gdkd.data.loading import load_data
from hf_gdkd.evaluation.measurement import measure_teacher
from hf_gdkd.evaluation.metrics import agreement
from hf_gdkd.training.teacher import Teacher


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Measure; returns what the JSON holds: the numbers by model."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="Hub id, short name, timm id or local folder")
    parser.add_argument("--dataset", required=True, help="Hub id, local folder, or digits")
    parser.add_argument("--split", help="default: validation, valid, val or test")
    parser.add_argument("--teacher", help="model to agree with, likewise named")
    parser.add_argument("--baseline", help="model to compare with, such as the same student trained without a teacher")
    parser.add_argument("--image_column")
    parser.add_argument("--label_column")
    parser.add_argument("--on_bad_image", choices=("error", "skip"), default="error")
    for role in ("", "teacher_", "baseline_", "dataset_"):
        parser.add_argument(f"--{role}revision", help="branch, tag or commit on the Hub")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", help="JSON file to write")
    options = parser.parse_args(argv)
    quiet()

    asked = {name: getattr(options, name) for name in ("image_column", "label_column", "on_bad_image")}
    if options.split is not None:
        asked |= {"train_split": options.split, "eval_split": options.split}
    data = load_data(options.dataset, revision=options.dataset_revision, require_labels=True, **asked)
    results, logits = {}, {}
    named = {
        options.model: options.revision,
        options.teacher: options.teacher_revision,
        options.baseline: options.baseline_revision,
    }
    named.pop(None, None)
    for name, revision in named.items():
        model = Teacher.load(name, revision=revision)
        model.match(data.label_names, model.view, data_name=data.name)
        logits[name], results[name] = measure_teacher(
            model, data.eval, batch_size=options.batch_size, device=options.device
        )
    for name in (options.model, options.baseline):
        if options.teacher is not None and name not in (None, options.teacher):
            results[name]["agreement"] = agreement(logits[name], logits[options.teacher])

    for name, numbers in results.items():
        print(f"{name} on {data.name} ({data.eval_split}, {len(data.eval)} images)")
        print("".join(f"  {key:20} {value:.6g}\n" for key, value in numbers.items()), end="")
    folder = Path(options.model) if Path(options.model).is_dir() else Path()
    output = Path(options.output or folder / "evaluation.json")
    output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"written to {output}")
    return results


if __name__ == "__main__":
    run(main)
