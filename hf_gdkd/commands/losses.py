"""What `hf-gdkd losses` prints: every loss with its paper, options and defaults, read from the classes."""

from __future__ import annotations

import inspect
import re
import textwrap
from dataclasses import fields

from ..losses import FEATURE_LOSSES, LOSS_WEIGHTS, LOSSES, DistillationLoss, loss_options
from ..training.options import LossOptions

WIDTH = 100


def losses_listing() -> str:
    """Every loss, those of `register_loss` included: what its docstring and its signature say."""
    losses = "\n\n".join(_describe(name, cls) for name, cls in (LOSSES | FEATURE_LOSSES).items())
    several = _wrap(
        "Several: --loss gdkd+fitnet adds them up; --loss_options gdkd.k=3 fitnet.weight=30 sets an option of one, and "
        "its weight, and --kd_weight auto lets training find the weights that are unset.",
        "",
    )
    auto = _wrap(
        "auto: what is recommended for the student (CNN or transformer), the number of classes and the training; a run "
        "prints and records the settings that it stands for.",
        "",
    )
    return "\n".join([losses, "", "ce: the cross-entropy alone, without a teacher.", *auto, *several])


def _describe(name: str, cls: type[DistillationLoss]) -> str:
    text = inspect.getdoc(cls) or ""
    summary, sections = text.split("\n\n")[0], _sections(text)
    said = _entries(sections.get("Args", ""))
    lines = _wrap(f"{name}: {' '.join(summary.split())}", "")
    if reference := sections.get("Reference"):
        lines += _wrap(f"Paper: {' '.join(reference.split())}", "  ")
    helps = {f.name: f.metadata["help"] for f in fields(LossOptions)}
    parameters = inspect.signature(cls).parameters
    for option in loss_options(name):
        default = parameters[option].default if option in parameters else None
        lines += _wrap(f"--{option} ({_shown(default)}) {said.get(option) or helps.get(option, '')}".rstrip(), "    ")
    ce, kd = LOSS_WEIGHTS.get(name, (1.0, 1.0))
    return "\n".join([*lines, f"    --ce_weight ({ce:g}) --kd_weight ({kd:g})"])


def _shown(default: object) -> str:
    if default is None or default is inspect.Parameter.empty:
        return "unset" if default is None else "required"
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default).lower()


def _sections(text: str) -> dict[str, str]:
    """The sections of a docstring, such as Args, by title."""
    found = re.split(r"^(\w+):\n", text, flags=re.M)
    return dict(zip(found[1::2], (re.split(r"\n\n(?=\S)", body)[0] for body in found[2::2]), strict=True))


def _entries(section: str) -> dict[str, str]:
    """The entries of an Args section by name; a line that is indented further goes on with the entry above."""
    found = re.split(r"^(\w+): ", textwrap.dedent(section), flags=re.M)
    return dict(zip(found[1::2], (" ".join(body.split()) for body in found[2::2]), strict=True))


def _wrap(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=f"{indent}    ")
