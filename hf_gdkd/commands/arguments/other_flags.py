"""The flags of the other commands: evaluate, analyze, push, compare, losses and recipes.

Only the standard library is imported, because `--help` is made from this module and must be quick.
"""

from __future__ import annotations

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from dataclasses import fields
from pathlib import Path
from typing import NoReturn

from ...errors import InputError
from .distill_flags import DistillArguments

# The flags of `distill` that `evaluate` has too.
EVALUATION_FLAGS = (
    *("dataset", "dataset_config", "dataset_revision", "train_split", "eval_split", "validation_rows"),
    *("image_column", "label_column", "on_bad_image", "label_map", "label_free", "trust_remote_code"),
    *("task", "reduce_labels", "id2label", "palette", "window"),
)
EVALUATION_HELP = {
    "train_split": "Split that validation_rows are held out of.",
    "label_free": "Read no labels: measure the agreement with the teacher alone.",
}


class Parser(ArgumentParser):
    """An ArgumentParser whose refusals are InputErrors, and whose help is at most 100 columns wide."""

    def __init__(self, command: str, example: str) -> None:
        super().__init__(
            f"hf-gdkd {command}",
            description=f"example:\n  hf-gdkd {command} {example}",
            formatter_class=help_format,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message.rstrip('.')}; {self.prog} --help lists the flags.")


def help_format(prog: str) -> RawDescriptionHelpFormatter:
    """Flags on the left, and 100 columns in all."""
    return RawDescriptionHelpFormatter(prog, max_help_position=34, width=100)


def _truth(word: str) -> bool:
    if word.lower() not in ("true", "false"):
        raise ValueError
    return word.lower() == "true"


def evaluate_parser() -> Parser:
    """What `hf-gdkd evaluate` takes."""
    parser = Parser("evaluate", "--model runs/student --teacher runs/digits-teacher")
    models = parser.add_argument_group("Models")
    models.add_argument("--model", required=True, help="Hub id, short name, timm id or local folder.")
    models.add_argument("--teacher", help="Model to agree with.")
    models.add_argument("--baseline", help="Model to compare with, such as the same student without a teacher.")
    for role in ("", "teacher_", "baseline_"):
        models.add_argument(f"--{role}revision", help="Branch, tag or commit on the Hub.")
    _add_data(parser, "Unset, each is what the model was trained with (its recipe.yaml), on the rows held out then.")
    work = parser.add_argument_group("Measurement")
    work.add_argument("--batch_size", type=int, help="Images per batch (default: 64, or 8 with masks).")
    work.add_argument("--device", help="Unset: the GPU if there is one, else cpu.")
    work.add_argument("--output", help="JSON file to write; unset: evaluation.json in the model's folder.")
    return parser


def analyze_parser() -> Parser:
    """What `hf-gdkd analyze` takes."""
    parser = Parser("analyze", "--teacher google/vit-base --dataset timm/mini-imagenet --output_dir runs/report")
    models = parser.add_argument_group("Models")
    models.add_argument("--teacher", help="Hub id, short name, timm id or local folder.")
    models.add_argument("--student", help="Model to compare with the teacher.")
    models.add_argument("--teacher_cache", help="Folder of the teacher's logits: analyse these, not the images.")
    for role in ("teacher", "student"):
        models.add_argument(f"--{role}_revision", help="Branch, tag or commit on the Hub.")
    _add_data(
        parser,
        "Unset, each is what the student, the cache or the teacher was made with (its recipe.yaml): a model is shown "
        "the rows held out then, a cache is read for the rows of its training split.",
    )
    work = parser.add_argument_group("Report")
    work.add_argument("--output_dir", required=True, help="Folder of the report: index.html, figures, analysis.json.")
    work.add_argument("--temperature", type=float, default=1.0, help="T of the averages and entropies (default: 1).")
    work.add_argument("--batch_size", type=int, help="Images per batch (default: 64, or 8 with masks).")
    work.add_argument("--device", help="Unset: the GPU if there is one, else cpu.")
    work.add_argument("--push_space", metavar="ID", help="Push the report to this Space on the Hub.")
    work.add_argument("--hub_private_repo", action="store_true", default=None, help="Make the Space private.")
    return parser


def _add_data(parser: Parser, description: str) -> None:
    data = parser.add_argument_group("Data", description)
    for flag in (f for f in fields(DistillArguments) if f.name in EVALUATION_FLAGS):
        names = [f"--{flag.name}", *(["--split"] if flag.name == "eval_split" else [])]
        # HfArgumentParser replaces the name of a type by the type
        declared = flag.type.__name__ if isinstance(flag.type, type) else str(flag.type)
        kind = {"type": int} if "int" in declared else {}
        if declared == "bool":
            kind = {"type": _truth, "nargs": "?", "const": True, "metavar": "true,false"}
        data.add_argument(*names, default=None, help=EVALUATION_HELP.get(flag.name, flag.metadata["help"]), **kind)


def push_parser() -> Parser:
    """What `hf-gdkd push` takes."""
    parser = Parser("push", "runs/student --hub_model_id me/student")
    parser.add_argument("folder", help="Output folder of a finished run, or of a report.")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--hub_model_id", help="Repository; unset: your name and the folder's.")
    where.add_argument("--push_space", metavar="ID", help="Push the report in this folder to this Space.")
    parser.add_argument("--hub_private_repo", action="store_true", default=None, help="Make the repository private.")
    return parser


def replay_parser() -> Parser:
    """What `hf-gdkd replay` takes, beside the flags of `distill`."""
    parser = Parser("replay", "runs/student/checkpoint-7")
    parser.add_argument("checkpoint", help="The checkpoint that the run named when it was stopped.")
    return parser


def compare_parser() -> Parser:
    """What `hf-gdkd compare` takes."""
    parser = Parser("compare", "scripts/compare/fashion-mnist.yaml --report RESULTS.md --workers 2")
    parser.add_argument("comparisons", nargs="+", type=Path, help="YAML files, one for each data set.")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/compare"), help="Folder of the runs.")
    parser.add_argument("--report", type=Path, default=Path("runs/compare/RESULTS.md"), help="Report to write.")
    parser.add_argument("--reported", type=Path, help="YAML file of others' figures, for the report.")
    parser.add_argument("--workers", type=int, default=1, help="Runs at a time on each GPU, or on the CPU without one.")
    parser.add_argument("--stacked", action="store_true", help="Train the runs that differ in loss and seed together.")
    parser.add_argument("--repeat", nargs=2, metavar=("STUDENT", "LOSS"), help="Repeat one row of the report.")
    return parser


def losses_parser() -> Parser:
    """What `hf-gdkd losses` takes."""
    parser = Parser("losses", "--loss_file my_loss.py")
    parser.add_argument("--loss_file", help="Python file that registers losses of your own, to list them too.")
    return parser


def recipes_parser() -> Parser:
    """What `hf-gdkd recipes` takes: nothing."""
    return Parser("recipes", "")


def cache_parser() -> Parser:
    """What `hf-gdkd cache` takes, beside the flags of distill for `record` and `estimate`."""
    parser = Parser("cache", "record runs/cache --teacher google/vit-base --dataset timm/mini-imagenet")
    actions = parser.add_subparsers(dest="action", required=True, parser_class=ArgumentParser)

    def action(name: str, text: str, *arguments: str) -> ArgumentParser:
        own = actions.add_parser(name, help=text, description=text, formatter_class=help_format, allow_abbrev=False)
        own.error = parser.error
        for argument in arguments:
            own.add_argument(argument)
        return own

    action("record", "Run the teacher on every view of every image; takes the flags of distill.", "folder")
    action("estimate", "Print the size of a cache, and the time it saves; takes the flags of distill.")
    check = action("verify", "Run the teacher again on random rows, and compare.", "folder")
    check.add_argument("--rows", type=int, default=100, help="How many (default: 100).")
    push = action("push", "Upload a cache as a data set.", "folder")
    push.add_argument("--hub_dataset_id", required=True, help="Repository, such as me/cache.")
    push.add_argument("--hub_private_repo", action="store_true", default=None, help="Make it private.")
    action("pull", "Download a cache.", "hub_dataset_id", "folder")
    return parser


PARSERS = {
    "analyze": analyze_parser,
    "cache": cache_parser,
    "evaluate": evaluate_parser,
    "push": push_parser,
    "compare": compare_parser,
    "replay": replay_parser,
    "losses": losses_parser,
    "recipes": recipes_parser,
}
