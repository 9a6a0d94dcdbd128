"""The one exception that means: what you gave is wrong, and this sentence says how to mend it."""


class InputError(ValueError):
    """Bad input: what came, what was expected, what to do. The scripts print it alone and exit with 2."""


class TrainingError(RuntimeError):
    """Training could not go on: a loss that is not finite, a full disk. The scripts print it alone and exit with 4."""


class PushError(RuntimeError):
    """A finished student could not be uploaded. The scripts print it alone and exit with 3."""


def first_sentence(error: Exception) -> str:
    """The first line of what another library's error says, ended by a full stop."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")
    return f"{line}."
