"""Push a finished student to the Hub.

    python scripts/push.py runs/student --hub_model_id me/student

Uploads the weights, the configuration, the image processor, the card, the settings, the metrics and the picture.
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
from hf_gdkd.publishing.upload import push


def main(argv: Sequence[str] | None = None) -> None:
    """Push the student in a folder; prints its repository."""
    options = push_parser().parse_args(argv)
    folder = Path(options.folder)
    for name in ("config.json", "README.md", "metrics.json"):
        if not (folder / name).is_file():
            raise InputError(f"folder {folder} has no {name}: use the output folder of a finished run.")
    repo = push(folder, options.hub_model_id or folder.resolve().name, private=options.hub_private_repo)
    print(f"{folder} -> {repo}")


if __name__ == "__main__":
    run(main)
