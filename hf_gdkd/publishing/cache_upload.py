"""A teacher cache on the Hub, as a data set with a card."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import DatasetCard, DatasetCardData, HfApi, snapshot_download

from ..data.teacher_cache import read_description
from ..errors import InputError, PushError
from ..hub_client import HUB_ERRORS, hub_reason, retried

FILES = ["cache.json", "recipe.yaml", "view-*.logits", "view-*.crc32", "answers-*.npz", "README.md"]

CARD = """\
---
{metadata}
---

# Logits of {teacher} on {dataset}

{views} augmented views of {rows:,} images, {classes} classes, as {dtype}: what the teacher `{teacher}` says of them.
A student learns from these without running the teacher:

    pip install hf-gdkd
    hf-gdkd cache pull {repo} teacher-cache
    hf-gdkd distill --config teacher-cache/recipe.yaml --student ... --teacher_cache teacher-cache

The images are not part of this repository. The logits are of exactly these views, which hf_gdkd makes again from the
data set, the augmentation and the seed below; with anything else it refuses them. The licenses of the teacher and of
the data set apply.

```json
{description}
```

`view-000v.logits` is an array of one record for each row of the split, `view-000v.crc32` a checksum for each: see
`hf_gdkd.data.teacher_cache` and `hf_gdkd.data.cache_records`.
"""


def push_cache(folder: str, repo_id: str, private: bool | None = None) -> str:
    """Upload a teacher cache as a data set, with a card that says what it is of; returns the repository's id.

    Raises:
        InputError: the folder is not a teacher cache.
        PushError: the upload failed; the folder is as it was.
    """
    description = read_description(folder)
    teacher, dataset = description["teacher"]["name"], description["dataset"]["name"]
    tags = ["knowledge-distillation", "teacher-logits", f"teacher:{teacher}"]
    metadata = DatasetCardData(tags=tags, task_categories=["image-classification"], pretty_name=f"Logits of {teacher}")
    shown = {key: value for key, value in description.items() if key != "labels" or len(value) <= 20}
    sizes = {key: description[key] for key in ("views", "rows", "classes", "dtype")}
    text = CARD.format(
        metadata=metadata.to_yaml(), teacher=teacher, dataset=dataset, repo=repo_id,
        description=json.dumps(shown, indent=2), **sizes,
    )  # fmt: skip
    DatasetCard(text).save(Path(folder, "README.md"))
    api = HfApi()

    def upload() -> str:
        repo = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True).repo_id
        api.upload_folder(repo_id=repo, repo_type="dataset", folder_path=folder, allow_patterns=FILES)
        return repo

    try:
        return retried(upload)
    except HUB_ERRORS as error:
        reason = hub_reason(error, repo_id, kind="upload", flag="--hub_dataset_id") or " ".join(str(error).split())
        raise PushError(f"the cache in {folder} was not uploaded to {repo_id}: {reason}") from error


def pull_cache(repo_id: str, folder: str) -> None:
    """Download a teacher cache into a folder.

    Raises:
        InputError: there is no such data set, or it is not a teacher cache.
    """
    try:
        snapshot_download(repo_id, repo_type="dataset", local_dir=folder, allow_patterns=FILES)
    except HUB_ERRORS as error:
        reason = hub_reason(error, repo_id, kind="data set") or " ".join(str(error).split())
        raise InputError(f"the teacher cache {repo_id} cannot be downloaded: {reason}") from error
    read_description(folder)
