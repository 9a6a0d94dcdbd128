"""How a command ends when the system refuses something."""

import errno
import os

import pytest

from hf_gdkd.commands.main import main as console
from hf_gdkd.commands.running import run


@pytest.mark.parametrize(
    "error, code, said",
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "/data/images"),
            2,
            "/data/images: Permission denied. Choose",
        ),
        (OSError(errno.EROFS, "Read-only file system", "/runs"), 2, "/runs: Read-only file system. Choose"),
        (OSError(errno.ENOSPC, "No space left on device"), 4, "No space left on device. Free some space"),
    ],
)
def test_system_errors_are_sentences(error, code, said, capsys, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)

    def main():
        raise error

    with pytest.raises(SystemExit) as caught:
        run(main)
    printed = capsys.readouterr().err
    assert caught.value.code == code and said in printed and printed.count("\n") == 1


def ends_unread(monkeypatch, command):
    """The exit code of a command whose output goes to a pipe that nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", pipe)
        with pytest.raises(SystemExit) as caught:
            command()
        pipe.flush()  # as the interpreter does at its end: no second complaint
    return caught.value.code


@pytest.mark.parametrize("lines", [1, 10_000])  # that stay in the buffer until the end, and more than it holds
def test_an_output_that_nobody_reads_ends_the_command(monkeypatch, lines):
    assert ends_unread(monkeypatch, lambda: run(lambda: print("line\n" * lines))) == 141


@pytest.mark.parametrize("words", ["--help", "losses", "recipes", "distill --help", "losses --help"])
def test_listings_end_with_their_reader(monkeypatch, words):
    assert ends_unread(monkeypatch, lambda: console(words.split())) == 141


def test_another_pipe_that_breaks_is_said():
    def main():
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        run(main)
