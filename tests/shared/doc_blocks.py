"""The code blocks of the README and the documentation, and what the comment above each says is done with it.

<!-- run -->          run, in one folder a page, in order; it may not talk to the Hub
<!-- hub -->          the same, against the local Hub
<!-- exit: 2 -->      the same, and it ends with this code
<!-- file: NAME -->   written to the folder
<!-- check: WHY -->   not run, for this reason: its flags, files and targets are checked
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
MARKER = re.compile(r"<!-- (run|hub|exit|file|check)(?:: (.*))? -->")


@dataclass
class Block:
    where: str
    language: str
    marker: str | None
    argument: str | None
    code: str

    def commands(self) -> list[list[str]]:
        """The words of each command of a shell block, without comments."""
        lines = self.code.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks(page: str) -> list[Block]:
    """Every fenced block of a page."""
    found, above, inside = [], "", None
    for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), start=1):
        if inside is not None and line == "```":
            inside.code = "\n".join(inside.code)
            found, inside = [*found, inside], None
        elif inside is not None:
            inside.code.append(line)
        elif line.startswith("```"):
            marker = MARKER.fullmatch(above)
            inside = Block(f"{page}:{number}", line.strip("`"), *(marker.groups() if marker else (None, None)), [])
        above = line
    return found


def script_and_flags(words: list[str]) -> tuple[str, list[str]]:
    """The script that a command runs, through whatever launcher, and its flags; else its first word and the rest."""
    if words[0] == "hf-gdkd":
        return words[1], words[2:]
    scripts = [i for i, word in enumerate(words) if re.fullmatch(r"scripts/\w+\.py", word)]
    if words[0] in ("accelerate", "torchrun", "python") and scripts:
        return Path(words[scripts[0]]).stem, words[scripts[0] + 1 :]
    return words[0], words[1:]
