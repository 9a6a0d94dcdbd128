"""What can go wrong between here and the Hub: every failure at every stage, and what users give that it refuses.

Each ends in one sentence, never in a traceback; with exit code 2 before training, and with 3 when a finished student
could not be pushed, which is then whole on disk.
"""

import json
import shlex
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
MODEL, DATA = "facebook/deit-tiny-patch16-224", "timm/mini-imagenet"
QUICK = "--loss ce --use_cpu --disable_tqdm true --output_dir runs/student".split()
SCRATCH = ["--student", str(ROOT / "scripts/demo/cnn"), "--student_init", "random", *QUICK]
ON_DIGITS = [*SCRATCH, "--dataset", "digits", "--num_train_epochs", "1"]


def with_student(name, *more):
    return ["--student", name, "--dataset", "digits", *QUICK, *more]


def with_teacher(name, *more):
    return [word if word != "ce" else "kd" for word in ON_DIGITS] + ["--teacher", name, *more]


def with_data(name, *more):
    return [*SCRATCH, "--dataset", name, *more]


def with_push(name, *more):
    return [*ON_DIGITS, "--push_to_hub", "--hub_model_id", name, *more]


# How the Hub fails, and the way out that the sentence names.
MODES = {
    "refuse": "check the network, and try again",
    "timeout": "check the network, and try again",
    "cut": "check the network, and try again",
    401: "log in with `hf auth login`",
    403: "use one that has, with `hf auth login` or HF_TOKEN",
    429: "try again in a few minutes",
    500: "try again later",
}

# What is downloaded: the script's words, the requests that fail, and how the sentence begins.
DOWNLOADS = {
    "model": (with_student(MODEL), "deit-tiny", f"model {MODEL} cannot be loaded: "),
    "data": (with_data(DATA), "mini-imagenet", f"data set {DATA} cannot be loaded: "),
}
FILES = {"model": "model[.]safetensors", "data": "[.]parquet"}


def patience(mode):
    """A server that leaves requests without an answer shall cost a test little time."""
    return {"HF_HUB_DOWNLOAD_TIMEOUT": "1"} if mode == "timeout" else {}


def last_words(done, code, *words):
    """The sentence that a failed run ends with; it holds all the words."""
    assert done.returncode == code, done.stderr[-3000:]
    *_, said = done.stderr.strip().splitlines()
    assert said.startswith("error: ") and "Traceback" not in done.stderr, done.stderr[-3000:]
    for word in words:
        assert word in said, said
    return said


# -- downloads ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["first request", "file"])
@pytest.mark.parametrize("stage", DOWNLOADS)
@pytest.mark.parametrize("mode", MODES)
def test_a_failed_download(hub, forks, mode, stage, part):
    words, path, begin = DOWNLOADS[stage]
    hub.fail(mode, path=path if part == "first request" else FILES[stage])
    last_words(forks("distill", *words, **patience(mode)), 2, f"error: {begin}", MODES[mode])
    assert not list(forks.folder.glob("runs/**/*.safetensors"))


def test_the_hub_fails_after_training(hub, forks):
    """The card's license is looked up then; without it the run still ends well."""
    hub.fail("cut", path="README[.]md")
    done = forks("distill", *DOWNLOADS["model"][0], "--max_steps", "1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "license" not in (forks.folder / "runs/student/README.md").read_text().split("---")[1]


# -- pushes ------------------------------------------------------------------------------------------------

CARD = "---\nlibrary_name: transformers\n---\n# student\n"
STUDENT = {"model.safetensors": "weights", "config.json": "{}", "README.md": CARD, "metrics.json": "{}"}
OTHERS = {"training_args.bin": "a pickle", "checkpoint-1/model.safetensors": "older"}
PUSH = ["runs/student", "--hub_model_id", "tester/student"]


@pytest.fixture
def student(hub, forks):
    """The folder of a finished student, with what is not for the Hub; its repository is not there yet."""
    hub.repos.pop(("models", "tester/student"), None)
    folder = forks.folder / "runs/student"
    for name, text in (STUDENT | OTHERS).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def pushed(hub):
    return set(hub.files("models", "tester/student")) - {".gitattributes"}


def test_only_what_a_user_needs_is_pushed(hub, forks, student):
    done = forks("push", *PUSH)
    assert done.returncode == 0, done.stderr
    assert pushed(hub) == set(STUDENT)


@pytest.mark.parametrize("mode", MODES)
def test_a_failed_push_loses_nothing(hub, forks, student, mode):
    hub.fail(mode, path="/commit/|/repos/create", method="POST")
    said = last_words(forks("push", *PUSH, **patience(mode)), 3, MODES[mode])
    assert said.startswith("error: the student is complete in runs/student, but the push to tester/student")
    assert said.endswith("Push it with: hf-gdkd push runs/student --hub_model_id tester/student")
    assert {name: (student / name).read_text() for name in STUDENT | OTHERS} == STUDENT | OTHERS
    hub.heal()
    assert forks("push", *PUSH).returncode == 0 and pushed(hub) == set(STUDENT)


@pytest.mark.parametrize("mode, naps", [("refuse", [1, 5]), (429, [1, 5]), (500, [1, 5]), (403, [])])
def test_what_may_pass_is_tried_again_ever_later(hub, forks, student, mode, naps):
    hub.fail(mode, path="/repos/create", times=2)
    done = forks("push", *PUSH)
    assert (done.returncode, done.naps) == (0 if naps else 3, naps), done.stderr


def test_a_run_whose_push_fails_is_pushed_by_the_command_that_it_names(hub, forks):
    hub.fail(500, path="/commit/")
    said = last_words(forks("distill", *with_push("tester/late")), 3)
    folder = forks.folder / "runs/student"
    metrics, weights = json.loads((folder / "metrics.json").read_text()), load_file(folder / "model.safetensors")
    assert metrics["parameters"] <= sum(tensor.numel() for tensor in weights.values())
    hub.heal()
    command = shlex.split(said.split("Push it with: ")[1])
    assert command[:2] == ["hf-gdkd", "push"] and forks("push", *command[2:]).returncode == 0
    files = hub.files("models", "tester/late")
    for path in folder.iterdir():
        if path.is_file() and path.name != "recipe.yaml":
            assert files[path.name] == path.read_bytes()
    settings = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert yaml.safe_load(files["recipe.yaml"]) == settings | {"student": Path(settings["student"]).name}


def test_pushes_during_training_hold_the_model_alone(hub, forks):
    """No pickle, no token, and no card, which would be that of an earlier run in the folder."""
    folder = forks.folder / "runs/student"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(f"{CARD}of an earlier run")
    seen = len(hub.received)
    words = ["--num_train_epochs", "2", "--hub_strategy", "every_save", "--hub_always_push", "--hub_token", hub.token]
    done = forks("distill", *with_push("tester/often", *words))
    assert done.returncode == 0, done.stderr[-3000:]
    _, *during, last = hub.repos["models", "tester/often"].commits.values()
    assert len(during) == 2 and during[0].files["model.safetensors"] != during[1].files["model.safetensors"]
    for commit in during:
        assert set(commit.files) - {".gitattributes"} == {
            "config.json",
            "model.safetensors",
            "preprocessor_config.json",
        }
    assert last.files["README.md"] == (folder / "README.md").read_bytes()
    hub.received, earlier = hub.received[seen:], hub.received[:seen]
    everything = hub.everything()
    hub.received[:0] = earlier
    assert b"model.safetensors" in everything
    for unwanted in (b"PK\x03\x04", b"training_args", b"earlier run", b"fine-tuned version", hub.token.encode()):
        assert unwanted not in everything


# -- bad input ---------------------------------------------------------------------------------------------


@pytest.fixture
def oddities(hub):
    """Repositories that are refused."""
    files = hub.files("models", MODEL)
    config = json.loads(files["config.json"]) | {"model_type": "mine", "auto_map": {"AutoConfig": "m.C"}}
    weightless = {name: data for name, data in files.items() if name != "model.safetensors"}
    hub.add("models", "other/private", files, private=True)
    hub.add("models", "tester/gated", files, gated=True)
    hub.add("models", "tester/bin", weightless | {"pytorch_model.bin": b"a pickle"})
    hub.add("models", "tester/code", files | {"config.json": json.dumps(config).encode(), "m.py": b"print('was run')"})
    rows = hub.files("datasets", DATA)
    hub.add("datasets", "tester/script", {"script.py": b"print('was run')", "README.md": b"# A script"})
    hub.add("datasets", "tester/no-yaml", rows | {"README.md": b"---\nconfigs: [a\n---\n"})
    hub.add("datasets", "tester/odd-keys", rows | {"README.md": b"---\ndataset_info:\n  features: 3\n---\n"})


PRIVATE = "the Hub has no repository of that name, or it is private"
GATE = (
    "the repository is gated: accept its terms at https://huggingface.co/{}, and log in with `hf auth login`, or set "
)
REVISION = "it has no revision 'v9': use a branch, tag or commit"
SCRIPT = "it is a script, which could run any code: use --dataset_revision refs/convert/parquet"


BAD_INPUT = {
    "private student": (with_student("other/private"), PRIVATE),
    "unknown student": (with_student("nobody/nothing"), f"there is no folder of that name, and {PRIVATE}"),
    "unknown teacher": (with_teacher("nobody/nothing"), f"there is no folder of that name, and {PRIVATE}"),
    "unknown data": (with_data("nobody/nothing"), PRIVATE),
    "gated student": (with_student("tester/gated"), GATE.format("tester/gated")),
    "gated data": (with_data("ILSVRC/imagenet-1k"), GATE.format("datasets/ILSVRC/imagenet-1k")),
    "revision of student": (with_student(MODEL, "--student_revision", "v9"), REVISION),
    "revision of teacher": (with_teacher(MODEL, "--teacher_revision", "v9"), REVISION),
    "revision of data": (with_data(DATA, "--dataset_revision", "v9"), REVISION),
    "pickles": (
        with_student("tester/bin"),
        "no model.safetensors, and pickled weights (pytorch_model.bin) are not read",
    ),
    "code": (with_student("tester/code"), "it runs its own code: read that code, then use --trust_remote_code"),
    "script": (with_data("tester/script"), SCRIPT),
    "card without YAML": (
        with_data("tester/no-yaml"),
        "the metadata in its README.md is not YAML: use a --dataset_rev",
    ),
    "card with odd keys": (with_data("tester/odd-keys"), "Expected a dict or a list"),
    "path in student": (
        with_student("org/name/sub"),
        "there is no folder org/name/sub: use an existing folder, or an id on the",
    ),
    "path in data": (
        with_data("org/name/sub"),
        "there is no folder org/name/sub: use an existing folder of images, an id",
    ),
    "path in repository": (
        with_push("me/student/v2"),
        "not a valid id on the Hub: use --hub_model_id organization/name",
    ),
    "no id": (with_student("a b/c"), "that is not a valid id on the Hub: use organization/name"),
    "repository of others": (with_push("other/student"), "the token has no access to it (403)"),
    "repository of others that is there": (with_push(MODEL), f"cannot write to {MODEL} on the Hub: the token has no"),
    "whole checkpoints": (with_push("tester/new", "--hub_strategy", "checkpoint"), "choose one of end, every_save"),
}


@pytest.mark.parametrize("words, said", BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input(hub, oddities, forks, words, said):
    assert last_words(forks("distill", *words), 2, said).endswith(".")
    assert not list(forks.folder.glob("runs/**/*.safetensors"))


@pytest.mark.parametrize("words", [
    with_student(MODEL), with_data(DATA), with_push("tester/new"),
], ids=["model", "data", "push"])  # fmt: skip
def test_a_wrong_token_is_told_before_training_and_never_printed(hub, forks, words):
    token = "hf_wrongwrongwrongwrong"
    done = forks("distill", *words, HF_TOKEN=token)
    last_words(done, 2, "the Hub does not accept the token (401): log in with `hf auth login`, or set HF_TOKEN")
    assert token not in done.stdout + done.stderr
    assert not list(forks.folder.glob("runs/**/*.safetensors"))


def test_the_terms_of_imagenet_open_its_gate(hub, forks):
    load = "from hf_gdkd.data.loading import load_data; print(len(load_data('ILSVRC/imagenet-1k').train))"
    last_words(forks("python", load, HF_TOKEN=""), 2, GATE.format("datasets/ILSVRC/imagenet-1k"))
    hub.accepted.add(("datasets", "ILSVRC/imagenet-1k"))
    done = forks("python", load)
    hub.accepted.clear()
    assert (done.returncode, done.stdout) == (0, "400\n"), done.stderr


@pytest.mark.parametrize("words, code, said", [
    (["runs/nothing"], 2, "folder runs/nothing has no config.json: use the output folder of a finished run"),
    (["runs/student", "--hub_model_id", "a/b/c"], 2, "not a valid id on the Hub: use --hub_model_id organization/name"),
    (["runs/student", "--hub_model_id", "other/student"], 3, "(403): use one that has, with `hf auth login` or "
     "HF_TOKEN, or another --hub_model_id."),
], ids=["unfinished", "path", "forbidden"])  # fmt: skip
def test_bad_input_of_push(forks, student, words, code, said):
    last_words(forks("push", *words), code, said)


def test_without_a_token(forks, student):
    said = last_words(forks("push", *PUSH, HF_TOKEN=""), 3, "failed: there is no token to log in to the Hub with: ")
    assert "log in with `hf auth login`" in said


def test_what_is_pushed_names_no_folders_and_says_how_to_load_the_model(hub, forks, student):
    """The files in the folder stay as they are; evaluate.py finds the settings in the repository."""
    path = "/home/somebody/digits-teacher"
    settings = {"loss": "kd", "teacher": [path, "google/vit-base"], "dataset": str(student), "learning_rate": 0.1}
    card = f"""{CARD}classify = pipeline("image-classification", "{student}")\n
    pip install it
    hf-gdkd distill --config recipe.yaml --output_dir runs/again\n"""
    (student / "recipe.yaml").write_text(yaml.safe_dump(settings))
    (student / "metrics.json").write_text(json.dumps({"teachers": {path: {"top1": 0.5}}}))
    (student / "README.md").write_text(card)
    for _ in range(2):
        assert forks("push", *PUSH).returncode == 0
    files = {name: content.decode() for name, content in hub.files("models", "tester/student").items()}
    assert yaml.safe_load(files["recipe.yaml"]) == settings | {
        "teacher": ["digits-teacher", "google/vit-base"], "dataset": "student",
    }  # fmt: skip
    assert files["recipe.yaml"].startswith("# Local files or folders of the author, named by the last part of")
    assert json.loads(files["metrics.json"]) == {"teachers": {"digits-teacher": {"top1": 0.5}}}
    assert 'pipeline("image-classification", "tester/student")' in files["README.md"]
    assert (
        files["README.md"].count("    hf download tester/student recipe.yaml --local-dir .\n    hf-gdkd distill") == 1
    )
    assert (student / "README.md").read_text() == card
    read = "from hf_gdkd.commands.evaluated_data import trained_with as t; print(t('tester/student', None)['dataset'])"
    assert forks("python", read).stdout == "student\n"


def test_a_card_whose_metadata_the_hub_refuses(forks, student):
    (student / "README.md").write_text("---\nlicense: [mit\n---\n")
    last_words(forks("push", *PUSH), 3, "Invalid metadata in README.md. - bad YAML: ", "license: [mit")
