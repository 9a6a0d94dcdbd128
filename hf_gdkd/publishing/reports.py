"""A report of `hf-gdkd analyze` for others: as a Space of its own, or beside the student that it is about."""

from __future__ import annotations

import hashlib
import html
import json
import logging
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, SpaceCardData, constants
from huggingface_hub.errors import HFValidationError

from ..errors import InputError, PushError, first_sentence
from ..evaluation.report import NUMBERS, PAGE
from ..hub_client import HUB_ERRORS, hub_reason, retried
from ..models.names import is_own_network

logger = logging.getLogger(__name__)

FOLDER = "report"  # of a run, with the report on its student
IN_CARD = ("maps", "agreement", "different", "calibration-of-both", "robustness")

SPACE_CARD = """\
---
{metadata}
---

# {title}

{subtitle}, made by `hf-gdkd analyze`. `index.html` is the report, `analysis.json` has every number.
"""


def weights_digest(folder: str | Path) -> str | None:
    """The SHA-256 of a local model's weights, by which a report is known to be about it; None if it is not local."""
    digest, files = hashlib.sha256(), sorted(Path(folder).glob("*.safetensors"))
    for path in files:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest() if files else None


def read_report(folder: str | Path) -> dict[str, Any]:
    """The numbers of the report in a folder.

    Raises:
        InputError: there is no report.
    """
    for name in (PAGE, NUMBERS):
        if not Path(folder, name).is_file():
            raise InputError(f"folder {folder} is not a report, it has no {name}: use one that hf-gdkd analyze made.")
    return json.loads(Path(folder, NUMBERS).read_text(encoding="utf-8"))


def report_as_pushed(folder: str | Path) -> dict[str, bytes]:
    """The files of a report by name: of local files and folders only the last part of their names is in them."""
    folder, numbers = Path(folder), read_report(folder)
    words = [numbers.get(name) for name in ("teacher", "student", "dataset")]
    for command in numbers.get("advice", {}).get("commands", {}).values():
        words += shlex.split(command)
    local = {word for word in words if word and os.sep in word and (os.path.isabs(word) or Path(word).exists())}
    found = {}
    for name, escape in ((PAGE, html.escape), (NUMBERS, lambda word: json.dumps(word)[1:-1])):
        found[name] = _shortened((folder / name).read_text(encoding="utf-8"), local, escape).encode()
    return found | {each["file"]: (folder / each["file"]).read_bytes() for each in numbers["figures"]}


def _shortened(text: str, local: set[str], escape: Callable[[str], str]) -> str:
    """A text with these paths shortened to their last part, but for the pictures in it."""
    short = {escape(word): escape(Path(word).expanduser().resolve().name) for word in local}
    longest_first = sorted(short, key=len, reverse=True)
    pattern = "|".join(['src="data:[^"]*"', *(rf"{re.escape(word)}(?![\w-])" for word in longest_first)])
    return re.sub(pattern, lambda found: short.get(found[0], found[0]), text)


def report_of(folder: str | Path) -> Path | None:
    """The report in a run's folder that is about its student as it is now; None if there is none."""
    report = Path(folder, FOLDER)
    if not (report / NUMBERS).is_file():
        return None
    if read_report(report).get("student_weights") != weights_digest(folder):
        logger.warning("The report in %s is not about these weights, so it is not pushed: make it again.", report)
        return None
    return report


def card_section(report: Path) -> str:
    """What a student's card shows of the report on it: figures, and links to the page."""
    numbers, lines = read_report(report), ["## What it learned of its teacher", ""]
    for each in numbers["figures"]:
        if Path(each["file"]).stem in IN_CARD:
            alt = re.sub(r"[\[\]]", "", each["alt"])
            lines += [f"![{alt}]({FOLDER}/{each['file']})", "", each["caption"], ""]
    where = f"`{FOLDER}/{PAGE}` in this repository is the whole report as one page, to download"
    if numbers.get("space"):
        where += f", and [a Space](https://huggingface.co/spaces/{numbers['space']}) shows it"
    return "\n".join([*lines, f"{where}; `{FOLDER}/{NUMBERS}` has its numbers.", ""])


def open_space(repo_id: str, *, private: bool | None = None) -> str:
    """Make a static Space unless it is there, and check that it can be written to; returns its whole id.

    Raises:
        InputError: it cannot be made or written to, and why.
    """
    api = HfApi()

    def make() -> str:
        space = api.create_repo(repo_id, repo_type="space", space_sdk="static", private=private, exist_ok=True).repo_id
        api.auth_check(space, repo_type="space", write=True)
        return space

    try:
        return retried(make)
    except HUB_ERRORS as error:
        reason = hub_reason(error, repo_id, kind="upload", flag="--push_space") or first_sentence(error)
        raise InputError(f"cannot write to the Space {repo_id} on the Hub: {reason}") from error


def page_of_space(space: str) -> str:
    """Where a Space is shown."""
    return f"{constants.ENDPOINT}/spaces/{space}"


def push_space(folder: str | Path, repo_id: str, *, private: bool | None = None) -> str:
    """Upload the report in a folder as a static Space, which is made unless it is there; returns its whole id.

    Raises:
        InputError: the folder has no report, or the id is not valid.
        PushError: the upload failed. The folder is unchanged, and the sentence names the command that pushes it.
    """
    api, numbers, contents = HfApi(), read_report(folder), report_as_pushed(folder)
    contents["README.md"] = _space_card(json.loads(contents[NUMBERS]), numbers).encode()

    def upload() -> str:
        space = api.create_repo(repo_id, repo_type="space", space_sdk="static", private=private, exist_ok=True).repo_id
        files = [CommitOperationAdd(name, content) for name, content in contents.items()]
        api.create_commit(space, files, repo_type="space", commit_message="Upload the report")
        return space

    try:
        return retried(upload)
    except HUB_ERRORS as error:
        reason = hub_reason(error, repo_id, kind="upload", flag="--push_space") or first_sentence(error)
        if isinstance(error, HFValidationError):
            raise InputError(f"cannot push to {repo_id}: {reason}") from error
        raise PushError(
            f"the report is complete in {folder}, but the push to the Space {repo_id} failed: {reason} "
            f"Push it with: hf-gdkd push {folder} --push_space {repo_id}"
        ) from error


def _space_card(shared: dict[str, Any], numbers: dict[str, Any]) -> str:
    """The README.md of a Space; it names models and data sets that are on the Hub, as far as their names can tell."""

    def on_hub(*roles: str) -> list[str] | None:
        names = [numbers.get(role) or "" for role in roles]
        return [x for x in names if "/" in x and not (Path(x).exists() or is_own_network(x))] or None

    title = f"Teacher: {shared['teacher']}" + (f", student: {shared['student']}" if shared["student"] else "")
    metadata = SpaceCardData(
        title=title, sdk="static", models=on_hub("teacher", "student"), datasets=on_hub("dataset"),
        tags=["knowledge-distillation", "gdkd"], short_description="What a teacher predicts",
    )  # fmt: skip
    return SPACE_CARD.format(metadata=metadata.to_yaml(), title=title, subtitle=f"On {shared['data']}")
