"""The console command, `hf-gdkd`: it runs the same code as the scripts, from any folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from .. import __version__
from ..errors import InputError
from .arguments.help import show_help
from .arguments.other_flags import PARSERS
from .output import ends_with_its_reader
from .recipes import listing

COMMANDS = {
    "distill": "Distil a teacher into a smaller student, on every GPU of this machine.",
    "evaluate": "Measure a model on a data set, beside its teacher and a baseline.",
    "analyze": "Show a teacher's predictions, and what a student did not learn of them, as a page.",
    "cache": "Record a teacher's logits ahead of time, check them, see what they cost, share them.",
    "push": "Push a finished student to the Hub.",
    "compare": "Compare losses fairly, as a YAML file describes.",
    "replay": "Repeat the step at which a run was stopped by a loss or a gradient that is not finite.",
    "losses": "List every loss with its paper, its options and their defaults.",
    "recipes": "List the paper's experiments (`hf-gdkd distill --recipe`), and presets (`--preset`).",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run `hf-gdkd` with these words, by default those of the command line.

    Exit codes: 2 bad input, 3 the push failed, 4 training could not go on.
    """
    with ends_with_its_reader():
        command, *words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
        _main(command, words)


def _main(command: str, words: list[str]) -> None:
    if command in ("-h", "--help"):
        print(usage())
    elif command == "--version":
        print(f"hf-gdkd {__version__}")
    else:
        try:
            if command not in COMMANDS:
                raise InputError(f"there is no command {command!r}: choose one of {', '.join(COMMANDS)}.")
            show_help(command, words)
            if command in ("losses", "recipes"):
                _list(command, words)
            else:
                _run(command, words)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(error.exit_code)


def usage() -> str:
    """What `hf-gdkd --help` prints."""
    lines = [f"  {name:10}{text}" for name, text in COMMANDS.items()]
    return "\n".join(
        ["usage: hf-gdkd COMMAND [flags]", "", *lines, "", "`hf-gdkd COMMAND --help` explains the flags of a command."]
    )


def _list(command: str, words: list[str]) -> None:
    options = PARSERS[command]().parse_args(words)
    if command == "recipes":
        print(listing())
        return
    from .loss_file import run_loss_file
    from .losses import losses_listing

    if options.loss_file is not None:
        run_loss_file(options.loss_file)
    print(losses_listing())


def _run(command: str, words: list[str]) -> None:
    from .launching import launch, processes_to_start
    from .running import run

    def work() -> None:
        processes, rest = processes_to_start(words) if command == "distill" else (1, words)
        if processes > 1:
            launch(rest, processes)
        else:
            import_module(f"hf_gdkd.scripts.{command}").main(rest)

    run(work)


if __name__ == "__main__":
    main()
