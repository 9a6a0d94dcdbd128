"""What `hf-gdkd analyze` does: from its flags to the report."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from ..data.teacher_cache import TeacherCache
from ..errors import InputError
from ..evaluation.report import PAGE
from ..publishing.reports import open_space, push_space
from ..publishing.wording import CLASSIFICATION
from ..training.run_files import read_run_settings
from .arguments.distill_flags import DistillArguments
from .arguments.other_flags import analyze_parser
from .evaluated_data import parse_data
from .report_folder import check_output


def parse_analysis(argv: Sequence[str] | None = None) -> tuple[Namespace, DistillArguments]:
    """Parse the flags of `hf-gdkd analyze`: its own options, and the data.

    Raises:
        InputError: no teacher, no data set, or flags that do not go together.
    """
    parser, words = analyze_parser(), list(sys.argv[1:] if argv is None else argv)
    deciding = {"student": "student_revision", "teacher_cache": "", "teacher": "teacher_revision"}
    options, wanted = parse_data(parser, words, deciding)
    if options.teacher_cache is not None:
        TeacherCache.open(options.teacher_cache)
    if options.teacher is None and options.teacher_cache is not None:
        settings = read_run_settings(options.teacher_cache) or {}
        options.teacher = (settings.get("teacher") or [None])[0]
        options.teacher_revision = (settings.get("teacher_revision") or [None])[0]
    if options.teacher is None:
        raise InputError("there is no teacher: use --teacher, or --teacher_cache with a folder that was recorded.")
    if wanted.task != CLASSIFICATION and options.teacher_cache is not None:
        raise InputError(f"a teacher cache is for {CLASSIFICATION}, and this is {wanted.task}: leave it out.")
    if not options.temperature > 0:
        raise InputError(f"temperature is {options.temperature}: use a number above 0.")
    return options, wanted


def analyze(options: Namespace, wanted: DistillArguments) -> dict[str, Any]:
    """Look at the teacher, and at the student if there is one; writes the report and returns its numbers.

    Raises:
        InputError: what cannot be loaded, matched, read or written; a Space that cannot be.
        PushError: the report is written, but could not be uploaded to its Space.
    """
    check_output(Path(options.output_dir))
    main = PartialState(cpu=options.device == "cpu" or not torch.cuda.is_available()).is_main_process
    if options.push_space is not None and main:
        options.push_space = open_space(options.push_space, private=options.hub_private_repo)
    # Each imports what it needs: a cache is read in far less memory than models are loaded in.
    if wanted.task != CLASSIFICATION:
        from .pixel_analysis import analyze_pixels as work
    elif options.teacher_cache is not None and options.student is None:
        from .cached_analysis import analyze_cache as work
    else:
        from .image_analysis import analyze_images as work
    numbers = work(options, wanted)
    if options.push_space is not None and main:
        push_space(options.output_dir, options.push_space)
    return numbers


def where(folder: str) -> str:
    """The page of a report."""
    return str(Path(folder, PAGE))
