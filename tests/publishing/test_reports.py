"""Reports on the Hub: a Space of their own, and beside the student that they are about."""

import json
import re
import shutil

import numpy as np
import pytest
from hub_protocol import front_matter
from matplotlib.figure import Figure

from hf_gdkd.data.teacher_cache import TeacherCache
from hf_gdkd.evaluation.report import Report
from hf_gdkd.publishing.reports import report_as_pushed, report_of, weights_digest

RUN = {"model.safetensors": "weights", "config.json": "{}", "metrics.json": "{}"}
RUN["README.md"] = "---\nlibrary_name: transformers\n---\n# student\n\n## Loss\n\nkd\n"


def space_of(hub, name):
    return {path: data for path, data in hub.files("spaces", name).items() if path != ".gitattributes"}


@pytest.fixture
def words(forks):
    """The flags of an analysis of logits in a cache, of a teacher in a folder."""
    cache = TeacherCache(forks.folder / "runs/cache", {"teacher": "x"}, rows=1437, classes=10, views=1)
    cache.record(range(1437), [0] * 1437, np.random.default_rng(0).normal(size=(1437, 10)))
    (forks.folder / "runs/me&you/teacher").mkdir(parents=True)
    cached = ["--teacher_cache", "runs/cache", "--teacher", str(forks.folder / "runs/me&you/teacher")]
    return [*cached, "--dataset", "digits", "--output_dir", "runs/report"]


def test_a_report_becomes_a_static_space(hub, forks, words):
    """It is there before the work starts; when its upload fails, the sentence names the command that pushes it."""
    hub.fail(403, path="spaces/.*/commit/")
    done = forks("analyze", *words, "--push_space", "seen", "--hub_private_repo")
    assert done.returncode == 3 and hub.repos["spaces", "tester/seen"].private, done.stderr
    assert "the report is complete in runs/report, but the push to the Space tester/seen failed: the tok" in done.stderr
    assert "or another --push_space. Push it with: hf-gdkd push runs/report --push_space tester/seen\n" in done.stderr
    assert space_of(hub, "tester/seen")["index.html"] == b"welcome"
    hub.heal()
    done = forks("push", "runs/report", "--push_space", "tester/seen")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"runs/report -> {hub.url}/spaces/tester/seen\n"
    found, report = space_of(hub, "tester/seen"), forks.folder / "runs/report"
    pictures = {path.name for path in report.glob("*.png")}
    assert found.keys() == {"README.md", "style.css", "index.html", "analysis.json", *pictures} and len(pictures) > 4
    assert all(found[name] == (report / name).read_bytes() for name in pictures)
    card = front_matter(found["README.md"].decode())
    assert card["sdk"] == "static" and card["title"] == "Teacher: teacher" and "models" not in card
    for name in ("README.md", "index.html", "analysis.json"):
        assert str(forks.folder).encode() not in found[name] and b"runs/" not in found[name], name
    local = (report / "index.html").read_text()
    assert local.count("data:image/png") == found["index.html"].count(b"data:image/png") == len(pictures)
    assert "me&amp;you" in local and json.loads(found["analysis.json"])["space"] == "tester/seen"


@pytest.mark.parametrize("name, token, said", [
    ("tester/new", "", "cannot write to the Space tester/new on the Hub: there is no token to log in to the Hub with"),
    ("tester/new", "read", "cannot write to the Space tester/new on the Hub: the token has no access to it (403)"),
    ("other/new", None, "the token has no access to it (403): use one that has, with `hf auth login` or HF_TOKEN, or "
     "another --push_space."),
    ("other/there", None, "cannot write to the Space other/there on the Hub: the token has no access to it (403)"),
    ("a/b/c", None, "that is not a valid id on the Hub: use --push_space organization/name."),
])  # fmt: skip
def test_a_space_that_cannot_be_written_to_is_told_before_the_work(hub, forks, words, name, token, said):
    hub.add("spaces", "other/there", {"README.md": b""})
    token = {"read": hub.read_token, None: hub.token}.get(token, token)
    done = forks("analyze", *words, "--push_space", name, HF_TOKEN=token)
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert not (forks.folder / "runs/report/index.html").exists()


@pytest.fixture
def run(hub, forks):
    """A finished run with a report on its student."""
    hub.repos.pop(("models", "tester/student"), None)
    folder = forks.folder / "runs/student"
    folder.mkdir(parents=True)
    for name, text in RUN.items():
        (folder / name).write_text(text)
    report = Report("A student", "and its teacher")
    report.section("Figures")
    for name in ("mass", "agreement"):
        report.figure(name, Figure(figsize=(1, 1)), f"What {name} says.", f"Bars of {name} [x].")
    about = {"teacher": "google/vit", "student": str(folder), "dataset": "digits", "space": "tester/seen"}
    report.write(folder / "report", about | {"student_weights": weights_digest(folder)})
    (folder / "report/other.png").write_bytes(b"of something else")
    return folder


def test_a_student_takes_its_report_along_and_the_card_shows_it(hub, forks, run):
    done = forks("push", "runs/student", "--hub_model_id", "tester/student")
    assert done.returncode == 0, done.stderr
    found = hub.files("models", "tester/student")
    names = {"index.html", "analysis.json", "mass.png", "agreement.png"}
    assert {name for name in found if name.startswith("report/")} == {f"report/{name}" for name in names}
    card = found["README.md"].decode()
    assert "![Bars of agreement x.](report/agreement.png)\n\nWhat agreement says.\n" in card and "mass" not in card
    assert card.index("(https://huggingface.co/spaces/tester/seen)") < card.index("\n## Loss\n\nkd\n")
    assert str(run) not in card + found["report/analysis.json"].decode()
    assert (run / "README.md").read_text() == RUN["README.md"]


def test_a_report_on_other_weights_is_left_out(hub, forks, run):
    (run / "model.safetensors").write_text("of a later run")
    done = forks("push", "runs/student", "--hub_model_id", "tester/student")
    assert done.returncode == 0 and "The report in runs/student/report is not about these weights" in done.stderr
    assert hub.files("models", "tester/student").keys() == {".gitattributes", *RUN}
    shutil.rmtree(run / "report")
    assert report_of(run) is None


def test_pictures_stay_as_they_are_where_paths_are_shortened(tmp_path, monkeypatch):
    """Base64 has slashes too: this teacher's folder is named as a part of the picture is."""
    monkeypatch.chdir(tmp_path)
    figure = Figure(figsize=(1, 1))
    figure.figimage(np.random.default_rng(0).uniform(size=(99, 99)))
    reports = [Report(title, "") for title in ("first", "of its teacher")]
    for report in reports:
        report.section("")
        report.figure("noise", figure, "", "")
    page = reports[0].write("first", {}).read_text()
    teacher = re.search(r"[a-z]/[a-z](?=[/+])", page.split("base64,")[1])[0]
    (tmp_path / teacher).mkdir(parents=True)
    reports[1].text(f"It is {teacher}.")
    reports[1].write("second", {"teacher": teacher})
    shared = report_as_pushed("second")["index.html"].decode()
    assert f"<p>It is {teacher[2:]}.</p>" in shared
    assert shared.split("base64,")[1].split('"')[0] == page.split("base64,")[1].split('"')[0]
