"""The exceptions that the commands print as one sentence, each with its own exit code."""

import textwrap


class InputError(ValueError):
    """Bad input: what came, what was expected, what to do. The commands print it alone."""

    exit_code = 2

    def __str__(self) -> str:
        """The sentence alone: in an error from a DataLoader worker, torch puts a traceback before it."""
        return super().__str__().rpartition(f"{type(self).__name__}: ")[2].rstrip()


class TrainingError(RuntimeError):
    """Training cannot continue: the loss is not finite, or the disk is full. The commands print it alone."""

    exit_code = 4


class PushError(RuntimeError):
    """A finished student could not be uploaded. The commands print it alone."""

    exit_code = 3


def first_sentence(error: Exception) -> str:
    """The first line of another library's error message, at most 300 characters of it, ended by a full stop."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")
    return f"{textwrap.shorten(line, 300, placeholder=' ...')}."
