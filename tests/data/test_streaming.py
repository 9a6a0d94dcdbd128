"""A stream: every row once a pass over processes and workers, resumed exactly, its bad images counted."""

from __future__ import annotations

import io
import itertools
import tarfile
from collections import Counter
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from datasets import ClassLabel, Dataset, Features, Image
from pictures import ROWS, encode, parquet, picture, words
from safetensors.torch import load_file
from torch.utils.data import DataLoader, IterableDataset
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from hf_gdkd import GDKDConfig, GDKDTrainer
from hf_gdkd.commands.arguments.parsing import parse
from hf_gdkd.data.datasets import collate
from hf_gdkd.data.decoding import open_image
from hf_gdkd.data.loading import load_data
from hf_gdkd.data.streaming import AugmentedStream
from hf_gdkd.data.views import TrainTransform, View
from hf_gdkd.errors import InputError
from hf_gdkd.scripts.distill import main as distill


@pytest.fixture(autouse=True)
def settings(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)  # 5 s a pass of parquet


def webdataset(folder, names=True):
    """23 rows in three archives, and one for validation."""
    folder.mkdir()
    for split, archives in (("train", [range(8), range(8, 16), range(16, ROWS)]), ("validation", [range(3)])):
        for k, numbers in enumerate(archives):
            with tarfile.open(folder / f"{split}-{k:04}.tar", "w") as archive:
                for i in numbers:
                    files = {"jpg": encode(picture(i, (12, 12)), "JPEG"), "cls": str(i).encode(), "json": b"{}"}
                    for extension, data in files.items():
                        member = tarfile.TarInfo(f"{i:04}.{extension}")
                        member.size = len(data)
                        archive.addfile(member, io.BytesIO(data))
    if names:
        classes = {"class_label": {"names": {str(i): f"class {i}" for i in range(ROWS)}}}
        features = [{"name": "jpg", "dtype": "image"}, {"name": "cls", "dtype": classes}]
        (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'dataset_info': {'features': features}})}---\n")
    return str(folder)


def labels_alone(batch):
    return {"labels": batch["labels"]}


def stream(folder, transform=labels_alone, **options):
    return AugmentedStream(load_data(folder, streaming=True).train, transform, **{"seed": 0} | options)


class OnePass(IterableDataset):
    def __init__(self, stream, number):
        self.stream, self.number = stream, number

    def __iter__(self):
        return self.stream.one_pass(self.number)


def labels_of_pass(stream, number, workers):
    return [sample["labels"] for sample in DataLoader(OnePass(stream, number), None, num_workers=workers)]


# -- the split over processes and workers ------------------------------------------------------------------


@pytest.mark.parametrize("make", [parquet, webdataset])
@pytest.mark.parametrize("processes, workers", [(1, 0), (1, 2), (2, 2), (3, 1), (5, 0)])
def test_every_row_once_a_pass(tmp_path, make, processes, workers):
    """Whole shards where they divide evenly (5 processes, 3 of the archives), single rows where they do not."""
    rows = load_data(make(tmp_path / "data"), streaming=True).train
    for number in (0, 1):
        seen = Counter()
        for index in range(processes):
            share = AugmentedStream(rows, labels_alone, seed=0, process_index=index, num_processes=processes)
            labels = labels_of_pass(share, number, workers)
            assert labels or processes > 3
            seen.update(labels)
        assert seen == Counter(range(ROWS))


def test_passes_follow_each_other_without_end(tmp_path):
    samples = stream(parquet(tmp_path / "data"))
    labels = [sample["labels"] for sample in itertools.islice(samples, 3 * ROWS)]
    passes = [labels[i * ROWS : (i + 1) * ROWS] for i in range(3)]
    assert all(sorted(one) == list(range(ROWS)) for one in passes)
    assert passes[0] != passes[1] != passes[2] != passes[0] and passes[0] != list(range(ROWS))
    again = [sample["labels"] for sample in itertools.islice(samples, 3 * ROWS)]
    other = [sample["labels"] for sample in stream(str(tmp_path / "data"), seed=1).one_pass(0)]
    assert again == labels and other != passes[0]


def test_a_worker_without_a_shard_does_not_keep_the_others_waiting(tmp_path):
    loader = DataLoader(stream(parquet(tmp_path / "data", shard=ROWS)), None, num_workers=2, timeout=60)
    labels = [int(sample["labels"]) for sample in itertools.islice(loader, 2 * ROWS)]
    assert sorted(labels) == sorted([*range(ROWS)] * 2)


def test_a_sample_is_augmented_anew_each_pass_and_alike_each_time(tmp_path):
    transform = TrainTransform(View(ViTImageProcessor(size={"height": 8, "width": 8})), crop_scale=0.3)
    samples = stream(parquet(tmp_path / "data"), transform)
    torch.manual_seed(1)
    first = {s["labels"]: s["pixel_values"] for s in samples.one_pass(0)}
    torch.manual_seed(2)
    again = {s["labels"]: s["pixel_values"] for s in samples.one_pass(0)}
    second = {s["labels"]: s["pixel_values"] for s in samples.one_pass(1)}
    assert all(torch.equal(first[i], again[i]) for i in range(ROWS))
    assert not any(torch.equal(first[i], second[i]) for i in range(ROWS))


def sorted_rows(folder, classes=20, each=30):
    """Sorted by class, in one file of small row groups, as many data sets are."""
    folder.mkdir()
    labels = [label for label in range(classes) for _ in range(each)]
    images = [encode(picture(label, (4, 4))) for label in range(classes)]
    columns = {"image": [{"bytes": images[label], "path": None} for label in labels], "label": labels}
    features = Features({"image": Image(), "label": ClassLabel(names=[str(i) for i in range(classes)])})
    for split in ("train", "test"):
        Dataset.from_dict(columns, features).to_parquet(folder / f"{split}.parquet", batch_size=15)
    return str(folder)


def test_sorted_rows_are_shuffled(tmp_path, caplog):
    """A buffer of 60 rows is fed by all row groups in turns, and not by the first four."""
    folder = sorted_rows(tmp_path / "data")
    samples = stream(folder, shuffle_buffer=60)
    labels = [sample["labels"] for sample in samples.one_pass(0)]
    batches = [labels[i : i + 20] for i in range(0, 400, 20)]
    assert sorted(labels) == sorted([*range(20)] * 30)
    assert sum(len({*batch}) for batch in batches) / len(batches) > 10


@pytest.mark.parametrize("buffer, said", [(1, True), (600, False)])
def test_a_batch_of_few_classes_is_said(tmp_path, caplog, monkeypatch, buffer, said):
    samples = stream(sorted_rows(tmp_path / "data"), shuffle_buffer=buffer)
    args = GDKDConfig(output_dir=str(tmp_path), use_cpu=True, dataloader_pin_memory=False, dataloader_num_workers=0)
    shuffle = samples.rows.shuffle
    few = shuffle if buffer > 1 else lambda seed, **_: samples.rows
    monkeypatch.setattr(samples.rows, "shuffle", few)
    next(iter(samples.loader(args, 40, collate)))
    assert ("of 20 classes, where about 17 were expected: the data set seems to be sorted" in caplog.text) is said


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_passed_over_is_not_decoded_again(tmp_path, monkeypatch, workers):
    """The batches after it are those of a stream that was read from the beginning."""
    folder = parquet(tmp_path / "data", shard=2)
    args = GDKDConfig(
        output_dir=str(tmp_path), use_cpu=True, dataloader_pin_memory=False, dataloader_num_workers=workers
    )
    whole = itertools.islice(stream(folder).loader(args, 4, collate), 12)
    whole = [batch["labels"].tolist() for batch in whole]
    opened = torch.zeros(1, dtype=torch.int64).share_memory_()

    def counted(*words):
        opened.add_(1)
        return open_image(*words)

    monkeypatch.setattr("hf_gdkd.data.opened.open_image", counted)
    samples = stream(folder)
    samples.skip_batches(9)
    loader = iter(samples.loader(args, 4, collate))
    assert all(set(next(loader)) == {"sample_id"} for _ in range(9))
    assert int(opened) <= 4 * (1 + 2 * workers)  # what is read ahead
    assert [next(loader)["labels"].tolist() for _ in range(3)] == whole[9:]


# -- what cannot be streamed ---------------------------------------------------------------------------------


def refusal(call, *words):
    with pytest.raises(InputError) as caught:
        call()
    assert all(word in str(caught.value) for word in words), caught.value


def test_streams_that_cannot_be(tmp_path):
    unnamed = webdataset(tmp_path / "a", names=False)
    refusal(
        lambda: load_data(unnamed, streaming=True), "type int64", "card (README.md)", "class_label of the feature cls"
    )
    assert load_data(unnamed).label_names == [str(i) for i in range(ROWS)]
    single = parquet(tmp_path / "b")
    for file in Path(single).glob("test*"):
        file.unlink()
    refusal(lambda: load_data(single, streaming=True), "the split train alone", "leave --streaming out")
    refusal(lambda: load_data("digits", streaming=True), "digits is embedded")
    broken = parquet(tmp_path / "c")
    for file in Path(broken).glob("*.parquet"):
        file.write_bytes(b"PAR1 no more PAR1")
    refusal(lambda: load_data(broken, streaming=True), f"data set {broken} cannot be loaded")


def test_a_label_that_is_no_class(tmp_path):
    rows = load_data(parquet(tmp_path / "data"), streaming=True).train
    rows = rows.map(lambda row: row | {"labels": -1 if row["labels"] == 7 else row["labels"]}, features=rows.features)
    refusal(lambda: list(AugmentedStream(rows, labels_alone, seed=0).one_pass(0)), "has the label -1, outside 0 to 22")


@pytest.mark.parametrize("words, said", [
    ([], "--streaming needs --max_steps"),
    (["--max_steps", "9", "--mixup_alpha", "0.2"], "draw from the whole data set"),
    (["--max_steps", "9", "--repeated_augmentation", "3"], "draw from the whole data set"),
    (["--max_steps", "9", "--shuffle_buffer", "0"], "shuffle_buffer is 0: use a number of at least 1"),
    (["--max_steps", "9", "--kd_warmup_epochs", "5"], "kd_warmup_epochs is 5.0: with --streaming all max_"),
])  # fmt: skip
def test_what_a_stream_does_not_take(words, said):
    models = ["--student", "small", "--teacher", "big", "--output_dir", "x"]
    refusal(lambda: parse([*models, "--streaming", *words]), said)
    parse([*models, "--streaming", "--max_steps", "9", "--kd_warmup_epochs", "0.5", "--shuffle_buffer", "5"])
    refusal(lambda: parse([*models, "--shuffle_buffer", "5"]), "it is for --streaming alone")


def test_the_evaluation_split_is_read_again_when_it_changes(tmp_path):
    """It is kept on disk, as one that is not streamed."""
    folder = parquet(tmp_path / "data")
    first = load_data(folder, streaming=True).eval
    assert load_data(folder, streaming=True).eval.cache_files == first.cache_files
    assert first["labels"][:] == load_data(folder).eval["labels"][:] == [0, 1, 2, 3]
    file = next(Path(folder).glob("test*"))
    Dataset.from_parquet(str(file)).select([1, 2]).to_parquet(file)
    assert load_data(folder, streaming=True).eval["labels"][:] == [1, 2]


# -- training ------------------------------------------------------------------------------------------------


def trained(folder, data, resume=None, workers=0, **options):
    view = View(ViTImageProcessor(size={"height": 8, "width": 8}))
    torch.manual_seed(0)
    student = ViTForImageClassification(
        ViTConfig(
            **{"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
            **{"image_size": 8, "patch_size": 4, "num_labels": ROWS, "hidden_dropout_prob": 0.2},
        )
    )
    args = GDKDConfig(
        **{"output_dir": str(folder), "loss": "ce", "max_steps": 20, "per_device_train_batch_size": 4},
        **{"save_strategy": "steps", "save_steps": 7, "report_to": "none", "disable_tqdm": True, "use_cpu": True},
        **{"dataloader_pin_memory": False, "dataloader_num_workers": workers, "logging_steps": 20, **options},
    )
    trainer = GDKDTrainer(student, None, args, train_dataset=stream(data, TrainTransform(view)), data_collator=collate)
    trainer.train(resume_from_checkpoint=resume)
    return load_file(Path(folder) / "checkpoint-20" / "model.safetensors")


@pytest.mark.parametrize("workers, accumulate", [(0, 1), (2, 1), (0, 2)])
def test_a_resumed_stream_is_the_uninterrupted_one(tmp_path, workers, accumulate):
    """Step 7 lies in the second pass of 23 rows; the third and fourth follow."""
    data, options = parquet(tmp_path / "data"), {"gradient_accumulation_steps": accumulate}
    whole = trained(tmp_path / "a", data, workers=workers, **options)
    checkpoint = str(tmp_path / "a" / "checkpoint-7")
    resumed = trained(tmp_path / "b", data, checkpoint, workers, **options)
    elsewhere = trained(tmp_path / "c", data, checkpoint, workers, ignore_data_skip=True, **options)
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)
    assert any(not torch.equal(elsewhere[name], whole[name]) for name in whole)


def test_a_resumed_stream_does_not_decode_what_it_passes_over(tmp_path, monkeypatch):
    """13 steps of 4 images are left of 20; one batch is read ahead."""
    data = parquet(tmp_path / "data")
    trained(tmp_path / "a", data)
    opened = []
    monkeypatch.setattr("hf_gdkd.data.opened.open_image", lambda *a: opened.append(1) or open_image(*a))
    trained(tmp_path / "b", data, str(tmp_path / "a" / "checkpoint-7"))
    assert 13 * 4 <= len(opened) <= 14 * 4


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_counted_once(tmp_path, workers, capsys):
    """Three in the stream, which is read several times over, and one in the evaluation split."""
    folder = parquet(tmp_path / "data", bad=(0, 7, 8, 24))
    more = ["--streaming", "--max_steps", "30", "--dataloader_num_workers", str(workers)]
    metrics = distill(words(folder, tmp_path / "run", *more, "--on_bad_image", "skip"))
    assert metrics["bad_images"] == 4 and "4 images could not be read" in capsys.readouterr().out
    assert metrics["epochs"] == 1
    with pytest.raises(InputError, match="split test: image in row 1 "):
        distill(words(folder, tmp_path / "stopped", *more))
    folder = parquet(tmp_path / "readable", bad=(7,))
    with pytest.raises(InputError, match=r"image \d+ of process 0, worker \d \(7.jpg\) cannot be read") as caught:
        distill(words(folder, tmp_path / "stopped", *more))
    assert "\n" not in str(caught.value)


def test_not_one_image_can_be_read(tmp_path):
    rows = load_data(parquet(tmp_path / "data", bad=range(ROWS)), streaming=True).train
    refusal(lambda: next(iter(AugmentedStream(rows, labels_alone, seed=0, skip_bad_images=True))), "none of the 23")
