"""Measure a model on a data set, beside its teacher and a baseline.

    python scripts/evaluate.py --model runs/student --dataset digits --teacher runs/digits-teacher

Prints and writes (`--output`, by default evaluation.json in the model's folder) top-1, top-5, negative log-likelihood
in nats, expected calibration error, parameters, FLOPs and images a second of every model, and the agreement of model
and baseline with the teacher.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take seconds
    from hf_gdkd.commands.arguments.help import show_help

    show_help("evaluate")

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from hf_gdkd.commands.arguments.parsers import evaluate_parser
from hf_gdkd.commands.running import quiet, run
from hf_gdkd.data.loading import load_data
from hf_gdkd.evaluation.measurement import measure_teacher
from hf_gdkd.evaluation.metrics import agreement
from hf_gdkd.training.teacher import Teacher


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Measure; returns what the JSON holds: the numbers by model."""
    options = evaluate_parser().parse_args(argv)
    quiet()
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")

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
        logits[name], results[name] = measure_teacher(model, data.eval, batch_size=options.batch_size, device=device)
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
