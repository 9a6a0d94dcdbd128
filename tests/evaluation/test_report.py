"""The page of a report: complete in itself, escaped, and as a browser shows it on a phone and on a desktop."""

import json
import os
import re
import shutil
import subprocess

import pytest
from matplotlib.figure import Figure
from PIL import Image

from hf_gdkd.evaluation.report import Report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
PROBE = """<script>
const head = document.querySelectorAll("th button")[1];
const column = () => [...document.querySelectorAll("tbody td:first-child")].map(cell => cell.textContent).join();
head.click(); const rising = column(); head.click();
document.title = JSON.stringify({rising, falling: column(), sort: head.parentElement.getAttribute("aria-sort"),
  wide: document.documentElement.scrollWidth - innerWidth, width: innerWidth,
  page: getComputedStyle(document.body).backgroundColor,
  requests: performance.getEntriesByType("resource").filter(each => !each.name.startsWith("data:")).length,
  drawn: [...document.images].every(image => image.complete && image.naturalWidth > 0)});
</script>"""


@pytest.fixture
def page(tmp_path):
    report = Report("Teacher: a<b", "10 images & more")
    report.section("Numbers")
    figure = Figure(figsize=(9, 2))
    figure.subplots().plot([1, 2])
    report.figure("line", figure, "A line.", "A line that rises.")
    rows = [["ten", 10.5], ["nine", 9], ["none", float("nan")], ["tiny", 2e-5]]
    report.table("A table", ["name", "value"], rows)
    return report.write(tmp_path / "report", {"value": float("nan"), 3: [1.0, float("inf")]})


def test_the_page_is_complete_in_itself(page):
    text = page.read_text()
    assert not re.search(r"(src|href)=\"(?!data:|#)", text) and "url(" not in text and "http" not in text
    assert "Teacher: a&lt;b" in text and "10 images &amp; more" in text
    assert all('alt="' in tag for tag in re.findall("<img[^>]*>", text))
    assert re.findall(r"<td[^>]*>(.*?)</td>", text) == ["ten", "10.5", "nine", "9", "none", "-", "tiny", "2e-05"]
    figures = [{"file": "line.png", "caption": "A line.", "alt": "A line that rises."}]
    numbers = json.loads((page.parent / "analysis.json").read_text())
    assert numbers == {"value": None, "3": [1.0, None], "figures": figures}
    assert Image.open(page.parent / "line.png").size == (1080, 240)
    assert sorted(path.name for path in page.parent.iterdir()) == ["analysis.json", "index.html", "line.png"]


@pytest.mark.skipif(
    BROWSER is None and not os.environ.get("BROWSER_REQUIRED"), reason="no browser: .ci/browser installs one"
)
@pytest.mark.parametrize("width, dark", [(390, False), (1280, True)])
def test_in_a_browser(page, tmp_path, width, dark):
    assert BROWSER is not None, "no browser is installed, and BROWSER_REQUIRED is set"
    probed = page.with_name("probed.html")
    probed.write_text(page.read_text().replace("</body>", f"{PROBE}</body>"))
    done = subprocess.run(
        [
            *(BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"),
            *(f"--window-size={width},900", f"--blink-settings=preferredColorScheme={0 if dark else 1}"),
            *("--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--dump-dom", probed.as_uri()),
        ],
        text=True, capture_output=True, timeout=120,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    found = json.loads(re.search("<title>(.*?)</title>", done.stdout)[1])
    assert found["rising"] == "tiny,nine,ten,none" and found["falling"] == "ten,nine,tiny,none"
    assert found["sort"] == "descending" and found["requests"] == 0 and found["drawn"]
    assert found["wide"] <= 0, "the page is wider than the window"
    assert found["page"] == ("rgb(22, 24, 28)" if dark else "rgb(255, 255, 255)")
