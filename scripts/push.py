"""Push a finished student to the Hub.

    python scripts/push.py runs/student --hub_model_id me/student
    python scripts/push.py runs/student/report --push_space me/report

Uploads the weights, the configuration, the image processor, the card, the settings, the metrics and the pictures, and
the report on the student in its folder `report`. With `--push_space` it uploads a report alone, as a Space.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take seconds
    from hf_gdkd.commands.arguments.help import show_help

    show_help("push")

from collections.abc import Sequence
from pathlib import Path

from hf_gdkd.commands.arguments.other_flags import push_parser
from hf_gdkd.commands.running import run
from hf_gdkd.errors import InputError
from hf_gdkd.publishing.reports import page_of_space, push_space
from hf_gdkd.publishing.upload import push


def main(argv: Sequence[str] | None = None) -> None:
    """Push the student, or the report, in a folder; prints its repository."""
    options = push_parser().parse_args(argv)
    folder = Path(options.folder)
    if options.push_space is not None:
        print(f"{folder} -> {page_of_space(push_space(folder, options.push_space, private=options.hub_private_repo))}")
        return
    for name in ("config.json", "README.md", "metrics.json"):
        if not (folder / name).is_file():
            raise InputError(f"folder {folder} has no {name}: use the output folder of a finished run.")
    repo = push(folder, options.hub_model_id or folder.resolve().name, private=options.hub_private_repo)
    print(f"{folder} -> {repo}")


if __name__ == "__main__":
    run(main)
