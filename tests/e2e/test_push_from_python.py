"""`trainer.push_to_hub()`: the student arrives with the card of this project, and nothing else of the author."""

import re
from pathlib import Path

import yaml
from digit_models import save

CODE = """
from hf_gdkd import GDKDConfig, GDKDTrainer
from hf_gdkd.data import Augmented, EvalTransform, TrainTransform, View, Viewed, collate, load_data
from hf_gdkd.evaluation import compute_metrics
from hf_gdkd.models import load_model, load_processor

data = load_data({data!r}, require_labels=True, train_rows=100)
processor = load_processor({student!r})
trainer = GDKDTrainer(
    model=load_model({student!r}, label_names=data.label_names),
    teacher_model=load_model({teacher!r}, label_names=data.label_names),
    args=GDKDConfig(
        output_dir={output!r}, loss="gdkd3", k=3, learning_rate=1e-4, max_steps=2, save_steps=1, use_cpu=True,
        report_to="none", kd_warmup_epochs=1, hub_model_id="tester/from-python", hub_token={token!r}, disable_tqdm=True,
    ),
    train_dataset=Augmented(data.train, TrainTransform(View(processor)), seed=0),
    eval_dataset=Viewed(data.eval, EvalTransform(View(processor))),
    processing_class=processor,
    data_collator=collate,
    compute_metrics=compute_metrics,
)
trainer.train()
print("top1", trainer.evaluate()["eval_top1"])
trainer.push_to_hub({extra})
"""


def pushed(hub, forks, **names):
    """The files that arrived, the card's metadata and its text, and what was printed."""
    done = forks("python", CODE.format(**{"output": "runs/from-python", "extra": "", "token": hub.token} | names))
    assert done.returncode == 0, done.stderr[-3000:]
    files = hub.files("models", "tester/from-python")
    _, metadata, text = files["README.md"].decode().split("---\n", 2)
    return files, yaml.safe_load(metadata), text, done


def test_the_card_says_what_was_trained_and_measured(hub, forks):
    """Names and commits from the Hub, the loss with its numbers, the settings, the last evaluation."""
    names = {"data": "timm/mini-imagenet", "student": "deit-tiny", "teacher": "google/vit-base"}
    files, metadata, text, done = pushed(hub, forks, **names)
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth"))] and "config.json" in files
    assert hub.token.encode() not in b"".join(files.values())
    assert not re.search(r"More information needed|{{|{%|None|Undefined|\n\n\n", text)
    assert metadata["base_model"] == "facebook/deit-tiny-patch16-224" and metadata["datasets"] == [names["data"]]
    assert metadata["teacher_model"] == "google/vit-base-patch16-224" and metadata["license"] == "apache-2.0"
    assert "teacher:google/vit-base-patch16-224" in metadata["tags"]
    top1 = float(re.search(r"top1 (\S+)", done.stdout)[1])
    result = metadata["model-index"][0]["results"][0]
    assert result["metrics"][0]["value"] == top1 and result["dataset"]["type"] == names["data"]
    assert f"| top-1, % | {100 * top1:.2f} |" in text and "after step 2" in text
    assert "1.0 × cross-entropy + 1.0 × gdkd3, where gdkd3 = 1 × high" in text
    assert "- learning_rate: 0.0001\n" in text and "- kd_warmup_epochs: 1\n" in text
    assert "hf-gdkd distill" not in text and "training.png" not in text
    assert 'pipeline("image-classification", "tester/from-python")' in text


def test_local_folders_are_named_by_their_last_part_and_arguments_are_heeded(hub, forks):
    folder = forks.folder
    save(folder / "private/small", 0)
    save(folder / "private/large", 1)
    names = {"student": str(folder / "private/small"), "teacher": str(folder / "private/large"), "data": "digits"}
    extra = "license='mit', tags='mine', language='en', dataset='scans of mine'"
    _, metadata, text, _ = pushed(hub, forks, **names, extra=extra)
    whole = str(metadata) + text
    assert "private" not in whole and str(Path.home()) not in whole and "`small`" in text and "`large`" in text
    assert metadata["license"] == "mit" and metadata["language"] == "en" and "mine" in metadata["tags"]
    assert (
        "base_model" not in metadata and "datasets" not in metadata and "- Data: `scans of mine`, 10 classes." in text
    )
