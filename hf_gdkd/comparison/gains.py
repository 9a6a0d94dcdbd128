"""The table of what losses gained, for the advice of `hf-gdkd analyze`, from the CSVs beside RESULTS.md.

    python -m hf_gdkd.comparison.gains results

writes hf_gdkd/evaluation/gains.csv anew. A data set is in it when `hf_gdkd.evaluation.known_gains.CASES` describes it.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

from ..evaluation import known_gains

TABLE = Path(known_gains.__file__).with_name("gains.csv")
COLUMNS = ["dataset", "student", "loss", "seeds"]
COLUMNS += [f"to_{base}{end}" for base in ("ce", "kd") for end in ("", "_low", "_high")]


def gains_of(results: Path) -> list[dict[str, str]]:
    """The rows of the table: of each known data set, what was tuned on it, without the row to which all is compared."""
    found = []
    for case in known_gains.CASES:
        with (results / f"{case.name}.csv").open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["tuned_on"] == case.name and row["loss"] != "ce"]
        for row in rows:
            numbers = {name: f"{float(row[name]):.4f}" for name in COLUMNS if name.startswith("to_")}
            found.append({x: row[x] for x in COLUMNS[:3]} | {"seeds": str(len(json.loads(row["last"])))} | numbers)
    return found


if __name__ == "__main__":
    with TABLE.open("w", newline="", encoding="utf-8") as table:
        writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(gains_of(Path(sys.argv[1])))
