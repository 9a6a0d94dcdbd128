"""How a command ends when the system refuses something."""

import errno

import pytest

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
