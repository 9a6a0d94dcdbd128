"""Comparisons: statistics by hand, equal budgets, a test split that is read once and last, going on, the report."""

import csv
import json
import math
from itertools import pairwise

import pytest
import yaml
from fabricated_runs import Runs
from PIL import Image

from hf_gdkd.comparison.results import Row, Section, Trial, mean_and_deviation, paired, read_reported, spread
from hf_gdkd.comparison.spec import Comparison
from hf_gdkd.comparison.tables import carried, findings, summary, tuning, untuned, write_report
from hf_gdkd.errors import InputError
from hf_gdkd.scripts import compare

SPEC = {
    "dataset": "digits",
    "teacher": {"student": "scripts/demo/teacher", "validation_rows": 100},
    "students": {"cnn": {"student": "scripts/demo/cnn"}, "vit": {"student": "scripts/demo/vit"}},
    "training": {"train_rows": 300},
    "validation": {"validation_rows": 100},
    "test_split": "test",
    "trials": 2,
    "seeds": [0, 1, 2],
    "tuning_seed": 100,
    "losses": {
        "ce": [{}, {"label_smoothing_factor": 0.1}],
        "kd": [{"temperature": 4}, {"temperature": 2}],
        "kd standardized": [{"loss": "kd", "standardize": "global"}, {"loss": "kd", "standardize": "none"}],
        "gdkd": [{"k": 5}, {"k": 3}],
    },
}


def row(loss, last, **rest):
    values = {"dataset": "a", "student": "cnn", "tuned_on": "a", "settings": {}, "best": last, "ms_per_step": [5.0]}
    values |= {"extra_parameters": 0, "peak_mb": 1.0} | rest
    return Row(loss=loss, last=dict(enumerate(last)), **values)


def test_the_paired_interval_by_hand():
    """Differences 1, 2, 3: mean 2, standard deviation 1, t(0.975; 2) = 4.302653, so 2 -+ 4.302653 / sqrt(3)."""
    interval = paired({0: 11.0, 1: 22.0, 2: 33.0, 7: 99.0}, {0: 10.0, 1: 20.0, 2: 30.0, 8: 0.0})
    assert interval == pytest.approx((2, 2 - 2.484138, 2 + 2.484138), abs=1e-6)


def test_the_interval_is_paired():
    """What seeds have in common does not widen it."""
    noise = [0.0, 50.0, -30.0, 20.0]
    shifted = {seed: value + 1 + 0.01 * seed for seed, value in enumerate(noise)}
    interval = paired(shifted, dict(enumerate(noise)))
    assert 0.9 < interval.low < interval.mean < interval.high < 1.1


def test_one_seed_has_no_interval():
    assert math.isnan(paired({0: 1.0}, {0: 0.5}).mean)
    assert mean_and_deviation([0.25]) == (0.25, pytest.approx(math.nan, nan_ok=True))
    assert mean_and_deviation([1.0, 2.0, 3.0, 6.0]) == pytest.approx((3.0, math.sqrt(14 / 3)))


def test_labels_move_apart_around_where_they_were():
    places = spread([1.0, 1.1, 1.2, 9.0], gap=0.5)
    assert all(b - a >= 0.5 - 1e-12 for a, b in pairwise(places))
    assert sum(places) == pytest.approx(12.3) and spread([1.0, 2.0], gap=0.5) == [1.0, 2.0]


def test_the_sentences_name_ties_and_losses_of_gdkd():
    rows = {
        "ce": row("ce", [0.80, 0.81, 0.79]),
        "kd": row("kd", [0.849, 0.861, 0.839]),
        "mlkd": row("mlkd", [0.851, 0.859, 0.841]),
        "dkd": row("dkd", [0.90, 0.91, 0.89]),
        "gdkd": row("gdkd", [0.850, 0.860, 0.840]),
    }
    first, gdkd = findings(rows)
    assert first == "The highest mean is that of dkd, above all others."
    assert gdkd == "- gdkd: above ce; no difference seen to kd, mlkd; below dkd."
    first, _ = findings(rows | {"dkd": row("dkd", [0.85, 0.86, 0.95])})
    assert first == "The highest mean is that of dkd; no difference was seen between it and ce, kd, mlkd, gdkd."


def test_one_seed_alone_is_no_tie():
    rows = {"ce": row("ce", [0.80]), "gdkd": row("gdkd", [0.85])}
    assert findings(rows)[1] == "- gdkd: above none; no difference seen to none; below none; not compared with ce."


def test_the_summary_counts_tables():
    """gdkd is above ce in both, and above dkd in one and below it in the other."""
    sections = []
    for name, dkd in (("a", [0.70, 0.71, 0.69]), ("b", [0.90, 0.91, 0.89])):
        last = {"ce": [0.80, 0.81, 0.79], "gdkd": [0.85, 0.86, 0.84], "dkd": dkd}
        rows = [row(loss, values, tuned_on=name) for loss, values in last.items()]
        sections.append(Section(name, "", rows, [], None, {}))
    text = summary(sections)
    assert text[-1] == "| gdkd | 2 / 0 / 0 | - | 1 / 0 / 1 |" and "Of 2 tables" in text[1]


def test_what_tuning_and_what_the_loss_is_worth():
    scores = {"kd": [0.80, 0.88, 0.84], "gdkd": [0.85, None, 0.90]}
    trials = [Trial("vit", loss, {}, top1, False) for loss, each in scores.items() for top1 in each]
    assert tuning(trials) == (
        "On the held-out rows the trials of one loss lie up to 8.00 points apart (kd), the best of each row 2.00 (kd "
        "88.00, gdkd 90.00). 1 trials diverged."
    )


def test_what_was_not_tuned_stands_beside_the_same_loss_tuned_by_hand():
    rows = {
        "kd": row("kd", [0.80, 0.81, 0.79]),
        "kd auto": row("kd auto", [0.83, 0.84, 0.82], settings={"loss": "kd", "kd_weight": "auto"}),
        "dist auto": row("dist auto", [0.9, 0.9, 0.9], settings={"loss": "dist", "kd_weight": "auto"}),
    }
    trials = [Trial("cnn", "kd", {}, 0.8, True)]
    *_, line = untuned(rows, trials)
    assert line == "| kd auto | kd | +3.00 [+3.00, +3.00] | above it |"
    assert untuned({"kd": rows["kd"]}, trials) == []


def test_a_comparison_writes_its_own_chapter_and_leaves_the_others(tmp_path):
    report = tmp_path / "RESULTS.md"
    report.write_text("# Results\n\nolder\n")
    rows = [row(loss, [0.5, 0.6], best={0: 0.5, 1: 0.6}) for loss in ("ce", "kd")]
    write_report(report, [Section("a", "", rows, [], None, {}, chapter="Results: own")], ["x"], {})
    assert report.read_text().startswith("# Results\n\nolder\n\n# Results: own\n")


def test_a_setting_from_elsewhere_is_compared_with_the_one_tuned_here():
    here = [row("ce", [0.5, 0.6]), row("gdkd", [0.8, 0.9], settings={"k": 3}), row("kd", [0.7, 0.7])]
    there = [
        row("ce", [0.5, 0.6], tuned_on="b"),
        row("gdkd", [0.7, 0.8], tuned_on="b", settings={"k": 5}),
    ]
    text = "\n".join(carried(Section("a", "", [*here, *there], [], None, {})))
    assert "| cnn | ce | b | as it is | 2 | 55.00 ± 7.07 | the same setting |" in text
    assert "| cnn | gdkd | b | k 5 | 2 | 75.00 ± 7.07 | -10.00 [-10.00, -10.00] |" in text
    assert "Of 2 settings" in text and "1 below it" in text and "1 the same as it" in text


@pytest.mark.parametrize(
    "change, says",
    [
        ({"trials": 3}, "ce has 2 trials, and trials is 3"),
        ({"losses": SPEC["losses"] | {"gdkd": [{"k": 2}, {"k": 3}, {"k": 4}]}}, "gdkd has 3 trials"),
        ({"losses": {"ce": SPEC["losses"]["ce"]}}, "losses lacks kd"),
        ({"validation": {"eval_split": "test"}}, "validation would look at the test split test"),
        ({"validation": {}}, "validation would look at the test split"),
        ({"teacher": {"student": "scripts/demo/teacher"}}, "teacher would look at the test split"),
        ({"training": {"eval_split": "test"}}, "eval_split cannot be set for single runs"),
        ({"losses": SPEC["losses"] | {"gdkd": [{"k": 3}, {"seed": 1}]}}, "seed cannot be set for single runs"),
        ({"losses": SPEC["losses"] | {"gdkd": [{"k": 3}, {"beta": 1}]}}, "takes no option 'beta'"),
        ({"students": {"cnn": {"student": "scripts/demo/cnn", "learning_rat": 1}}}, "unknown argument"),
        ({"carried_seeds": [0, 9]}, "carried_seeds has some that are not among the seeds"),
        ({"sedes": [1]}, "has an unknown key sedes"),
        ({"seeds": None}, "lacks seeds"),
        ({"seeds": 3}, "seeds is 3: write a list of numbers"),
        ({"students": ["cnn"]}, "students is .'cnn'.: write a mapping"),
        ({"students": {"cnn": "folder"}}, "cnn of students is 'folder': write a mapping of settings"),
        ({"losses": SPEC["losses"] | {"gdkd": {"k": 3}}}, "gdkd of losses is .*: write a list of mappings, one for"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value.replace(" ", "-")[:30],
)
def test_a_faulty_comparison_is_an_error_before_any_run(tmp_path, change, says):
    spec = {key: value for key, value in (SPEC | change).items() if value is not None}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(spec))
    with pytest.raises(InputError, match=says):
        Comparison.read(tmp_path / "a.yaml", tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "digits"])
def test_a_file_that_is_no_comparison(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InputError, match=r"a\.yaml is not a comparison: write a mapping with the keys carried_seeds, "):
        Comparison.read(tmp_path / "a.yaml", tmp_path)


@pytest.mark.parametrize("text, says", [
    ("", "has no column loss: write the report again"),
    ("loss,student,tuned_on,settings,to_ce_low,to_ce_high\n", "has no student cnn: it has none"),
])  # fmt: skip
def test_a_csv_of_a_report_that_holds_nothing(tmp_path, text, says):
    (tmp_path / "results").mkdir()
    (tmp_path / "results/a.csv").write_text(text)
    with pytest.raises(InputError, match=says):
        read_reported(tmp_path / "RESULTS.md", "a", "cnn")


@pytest.fixture
def runs(monkeypatch):
    return Runs(monkeypatch)


@pytest.fixture
def call(tmp_path):
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(SPEC))
    other = SPEC | {
        "carried_seeds": [0, 1],
        "remarks": "Look here.",
        "losses": SPEC["losses"] | {"gdkd": [{"k": 5}, {"k": 5, "w2": 2}]},
    }
    (tmp_path / "b.yaml").write_text(yaml.safe_dump(other))

    def main(*words):
        report = ["--output_dir", str(tmp_path / "runs"), "--report", str(tmp_path / "RESULTS.md")]
        compare.main([*(str(tmp_path / word) if word.endswith(".yaml") else word for word in words), *report])

    return main


def test_the_test_split_is_read_last_and_never_by_tuning(runs, call):
    call("a.yaml")
    kinds = [kind for kind, _ in runs.seen]
    first_test = kinds.index("test")
    assert "train" not in kinds[first_test:]
    for kind, flags in runs.seen:
        looks_at = flags.get("eval_split")
        assert looks_at == "test" if kind == "test" else looks_at is None and flags["validation_rows"] == "100"
    trained = [flags for kind, flags in runs.seen if kind == "train"]
    tuning = [flags for flags in trained if flags.get("seed") == "100" and "max_steps" not in flags]
    assert len(tuning) == 2 * 4 * 2  # students, losses, trials
    assert len([flags for flags in trained if flags.get("seed") in ("0", "1", "2")]) == 2 * 4 * 3
    assert kinds.count("test") == 1 + 2 * 4 * 3


def test_the_best_trial_is_trained_with_every_seed(runs, call):
    call("a.yaml")
    final = [flags for kind, flags in runs.seen if kind == "train" and flags.get("save_strategy") == "best"]
    assert {flags["k"] for flags in final if flags["loss"] == "gdkd"} == {"3"}
    assert all("label_smoothing_factor" not in flags for flags in final)
    assert {flags.get("temperature") for flags in final if flags["loss"] == "kd"} == {"2", None}


def test_what_is_done_is_not_done_again_and_what_is_broken_is(runs, call, tmp_path):
    call("a.yaml")
    everything = len(runs.take())
    call("a.yaml")
    assert runs.take() == [] and everything == 1 + 16 + 24 + 8 + 25
    folder = tmp_path / "runs/a/final/vit/gdkd/k=3/seed1"
    (folder / "train.json").write_text('{"flags"')  # torn
    call("a.yaml")
    (kind, flags), (again, tested) = runs.take()
    assert kind == "train" and (flags["seed"], flags["k"]) == ("1", "3") and "vit" in flags["student"]
    assert again == "test" and tested["seed"] == 1
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(SPEC | {"teacher": SPEC["teacher"] | {"learning_rate": 0.1}}))
    call("a.yaml")  # students of another teacher are trained anew; ce has none
    assert not [flags for kind, flags in runs.seen if kind == "train" and flags["loss"] == "ce"][1:]
    assert len(runs.take()) == 1 + 12 + 18 + 6 + 19


def test_the_report(runs, call, tmp_path):
    call("a.yaml", "b.yaml")
    text = (tmp_path / "RESULTS.md").read_text()
    for line in (
        "The teacher (12 parameters) has 70.00 % (top-1 accuracy) on the test split.",
        "| gdkd | k 3 | 74.10 ± 0.10 | 75.10 ± 0.10 | +4.00 [+4.00, +4.00] | +2.00 [+2.00, +2.00] | 4.0 | 7 |",
        "- gdkd: above ce, kd, kd standardized; no difference seen to none; below none.",
        "| cnn | gdkd | b | k 5 | 3 | 70.10 ± 0.10 | -4.00 [-4.00, -4.00] |",
        "| cnn | gdkd | a | k 3 | 2 | 74.05 ± 0.07 | +4.00 [+4.00, +4.00] |",
        "| cnn | kd | b | temperature 2 | 3 | 72.10 ± 0.10 | the same setting |",
        "| vit | gdkd | k 3 | 84.00 | chosen |",
        "### Remarks on b\n\nLook here.\n",
    ):
        assert line in text
    assert all(Image.open(tmp_path / f"results/{name}.png").size[0] > 1000 for name in "ab")
    with open(tmp_path / "results/a.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["loss"] == "gdkd" and row["student"] == "cnn"]
    assert [(row["tuned_on"], row["settings"]) for row in rows] == [("a", '{"k": 3}'), ("b", '{"k": 5}')]
    assert float(rows[0]["to_ce_low"]) == pytest.approx(0.04) and json.loads(rows[0]["last"])["2"] == 0.742


def test_segmentation_is_compared_by_its_own_metric_in_its_own_chapter(runs, call, tmp_path):
    (tmp_path / "scenes.yaml").write_text(yaml.safe_dump(SPEC | {"task": "semantic-segmentation"}))
    runs.metric = "mean_iou"
    call("scenes.yaml")
    flags = [flags for kind, flags in runs.take() if kind == "train"]
    assert {each["task"] for each in flags} == {"semantic-segmentation"}
    assert {each["metric_for_best_model"] for each in flags if "metric_for_best_model" in each} == {"mean_iou"}
    assert "| gdkd | k 3 | 74.10 ± 0.10 |" in (text := (tmp_path / "RESULTS.md").read_text())
    assert "has 70.00 % (mean IoU) on" in text and "Both are mean IoU in %" in text
    runs.metric = "top1"
    call("a.yaml")
    assert all("task" not in flags for _, flags in runs.take())
    text = (tmp_path / "RESULTS.md").read_text()
    assert text.index("# Results: semantic segmentation\n") < text.index("# Results\n")


def test_a_run_that_diverges_is_a_result(runs, call, tmp_path):
    runs.broken = lambda flags: flags["loss"] == "gdkd" and (flags.get("k") == "3" or flags["seed"] == "1")
    call("a.yaml")
    text = (tmp_path / "RESULTS.md").read_text()
    assert "| cnn | gdkd | k 3 | diverged |  |" in text and "| cnn | gdkd | k 5 | 80.00 | chosen |" in text
    assert "Of 3 seeds some are missing, as a run diverged or is not done: gdkd (2)." in text
    call("a.yaml")
    assert len([flags for kind, flags in runs.seen if kind == "train" and flags.get("k") == "3"]) == 2


def test_a_row_is_repeated_with_its_reported_setting(runs, call, tmp_path, capsys):
    call("a.yaml")
    runs.take()
    again = [
        "--output_dir",
        str(tmp_path / "again"),
        "--report",
        str(tmp_path / "RESULTS.md"),
        "--repeat",
        "cnn",
        "gdkd",
    ]
    compare.main([str(tmp_path / "a.yaml"), *again])
    trained = [flags for kind, flags in runs.take() if kind == "train"]
    assert len(trained) == 1 + 3 + 3 and {flags["k"] for flags in trained if "k" in flags} == {"3"}
    assert "cnn, gdkd less ce: +4.00; reported: +4.00 to +4.00" in capsys.readouterr().out
    path = tmp_path / "results/a.csv"
    path.write_text(path.read_text().replace('""k"": 3', '""k"": 5'))
    with pytest.raises(SystemExit) as end:
        compare.main([str(tmp_path / "a.yaml"), *again])
    assert end.value.code == 1


def test_rows_with_several_losses_and_with_auto(runs, tmp_path):
    """A list of losses is what it is in a settings file, in the runs, the report and its CSV; `auto` is not tuned."""
    both = [{"loss": [{"name": "gdkd", "k": k, "weight": "auto"}, {"name": "fitnet", "weight": 30}]} for k in (3, 5)]
    spec = SPEC | {"losses": SPEC["losses"] | {"gdkd and fitnet": both, "auto": [{}]}}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(spec))
    report = ["--output_dir", str(tmp_path / "runs"), "--report", str(tmp_path / "RESULTS.md")]
    compare.main([str(tmp_path / "a.yaml"), *report])
    trained = [flags for kind, flags in runs.take() if kind == "train" and "max_steps" not in flags]
    losses = [flags["loss"] for flags in trained]
    assert losses.count("gdkd+fitnet") == 2 * (2 + 3) and losses.count("auto") == 2 * 3
    setting = "gdkd.k=3 gdkd.weight=auto fitnet.weight=30"
    text = (tmp_path / "RESULTS.md").read_text()
    assert "was not tuned" in text and "diverged" not in text and "| cnn | auto |" not in text
    assert f"| gdkd and fitnet | {setting} | 70.10 ± 0.10 |" in text and "| auto | as it is | 70.10 ± 0.10 |" in text
    again = ["--output_dir", str(tmp_path / "again"), *report[2:], "--repeat", "cnn", "gdkd and fitnet"]
    compare.main([str(tmp_path / "a.yaml"), *again])
    assert [flags["loss"] for _, flags in runs.take()].count("gdkd+fitnet") == 3 + 3  # trained and tested
