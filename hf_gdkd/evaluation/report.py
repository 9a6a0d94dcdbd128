"""A self-contained HTML page of figures and tables, with the figures as PNGs and all numbers as JSON beside it."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment
from matplotlib.figure import Figure
from PIL import Image

from ..training.run_files import replacing
from ..training.style import style

PAGE, NUMBERS = "index.html", "analysis.json"


class Report:
    """Sections of text, figures and tables, in the order in which they are added.

    >>> import tempfile
    >>> report = Report("A teacher", "on a data set")
    >>> report.section("Numbers")
    >>> report.table("How good it is", ["class", "accuracy, %"], [["cat", 93.2], ["dog", 91.0]])
    >>> report.write(tempfile.mkdtemp(), {"top1": 0.92}).name
    'index.html'

    Args:
        title: heading of the page.
        subtitle: the line below it.
    """

    def __init__(self, title: str, subtitle: str) -> None:
        self.title, self.subtitle, self._sections, self._pictures = title, subtitle, [], {}

    def section(self, title: str) -> None:
        """Begin a section."""
        self._sections.append({"title": title, "id": f"section-{len(self._sections) + 1}", "parts": []})

    def text(self, text: str, *, command: bool = False) -> None:
        """Add a paragraph, or a command to copy."""
        self._add(kind="command" if command else "text", text=text)

    def figure(self, name: str, figure: Figure, caption: str, alt: str) -> None:
        """Add a figure, which also becomes NAME.png; `alt` is what it shows, for those who do not see it."""
        with style():
            figure.savefig(data := io.BytesIO(), format="png")
        self._pictures[name] = data.getvalue()
        self._add_picture(f"{name}.png", data.getvalue(), figure.get_size_inches(), caption, alt)

    def picture(self, path: Path, caption: str, alt: str) -> None:
        """Add a picture that is a PNG in the report's folder already."""
        with Image.open(path) as image:
            inches = [side / image.info.get("dpi", (96, 96))[0] for side in image.size]
        self._add_picture(path.name, path.read_bytes(), inches, caption, alt)

    def _add_picture(self, file: str, data: bytes, inches: Sequence[float], caption: str, alt: str) -> None:
        width, height = (int(side * 96) for side in inches)  # in CSS pixels
        encoded = base64.b64encode(data).decode()
        self._add(kind="figure", file=file, data=encoded, caption=caption, alt=alt, width=width, height=height)

    def table(
        self, caption: str, columns: Sequence[str], rows: Sequence[Sequence[object]], words: Sequence[str] = ()
    ) -> None:
        """Add a table that a reader can sort; `words` are the columns that hold text, beside the first.

        Columns whose names end with % have one decimal place.
        """
        cells = [[_cell(value, name.endswith("%")) for name, value in zip(columns, row, strict=True)] for row in rows]
        self._add(kind="table", caption=caption, columns=list(columns), rows=cells, words=[columns[0], *words])

    def _add(self, **part: Any) -> None:
        self._sections[-1]["parts"].append(part)

    def write(self, folder: str | Path, numbers: Mapping[str, Any]) -> Path:
        """Write the page, its figures and analysis.json to a folder; returns the page's path.

        The JSON holds the numbers and, as `figures`, the file, caption and alt text of each figure.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        template = Environment(autoescape=True).from_string(
            (files("hf_gdkd.model_cards") / "report.html").read_text(encoding="utf-8")
        )
        page = template.render(
            title=self.title, subtitle=self.subtitle, sections=self._sections, version=version("hf_gdkd"), json=NUMBERS
        )
        for name, data in self._pictures.items():
            with replacing(folder / f"{name}.png") as part:
                part.write_bytes(data)
        figures = [
            {name: each[name] for name in ("file", "caption", "alt")}
            for section in self._sections
            for each in section["parts"]
            if each["kind"] == "figure"
        ]
        numbers = _finite({**numbers, "figures": figures})
        with replacing(folder / NUMBERS) as part:
            part.write_text(json.dumps(numbers, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        with replacing(folder / PAGE) as part:
            part.write_text(page, encoding="utf-8")
        return folder / PAGE


def _cell(value: object, percent: bool) -> dict[str, object]:
    """A cell's text, and what it is sorted by where that is a number."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return {"text": "-", "key": ""}
    if isinstance(value, float):
        size = abs(value)
        return {
            "text": format(value, ".1f" if percent or size >= 10 else ".3f" if size >= 0.01 else ".2g"),
            "key": value,
        }
    if isinstance(value, int):
        return {"text": f"{value:,}", "key": value}
    return {"text": str(value), "key": None}


def _finite(value: Any) -> Any:
    """JSON has no NaN: null."""
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
