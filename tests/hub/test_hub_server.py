"""The local Hub against the real clients, each in a process of its own: HF_ENDPOINT is read at import."""

import http.client
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hub_server import HubServer

HERE = Path(__file__).parent
PATHS = [str(HERE), str(HERE.parent / "shared")]
MODEL = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 4}


def run(function, home, *args, **variables):
    """Run a function of this file in a fresh process; it asserts, and may print JSON as its last line."""
    code = f"import sys; sys.path[:0] = {PATHS!r}; import test_hub_server as t; t.{function}(*{args!r})"
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
    env |= {"HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **variables}
    return subprocess.run([sys.executable, "-c", code], env=env, text=True, capture_output=True, timeout=120)


def ask(hub, method, path, body=None, token=None, timeout=5, **headers):
    """(status, headers, body) of one request of an ordinary HTTP client."""
    connection = http.client.HTTPConnection("127.0.0.1", hub.port, timeout=timeout)
    auth = {"Authorization": f"Bearer {token}"} if token else {}
    connection.request(method, path, body, auth | headers)
    response = connection.getresponse()
    return response.status, dict(response.headers), response.read()


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


# -- the server alone --------------------------------------------------------------------------------------


def test_revisions_stay(hub):
    old = hub.add("models", "tester/x", {"a": b"1"})
    new = hub.add("models", "tester/x", {"b": b"2"})
    assert len(old) == 40 and old != new
    assert hub.files("models", "tester/x", old)["a"] == b"1"
    assert set(hub.files("models", "tester/x")) == {".gitattributes", "b"}
    assert ask(hub, "GET", f"/tester/x/resolve/{old}/a")[2] == b"1"
    with pytest.raises(KeyError, match="no revision"):
        hub.files("models", "tester/x", "v2")


@pytest.mark.parametrize(
    "path, token, status, code",
    [
        ("/tester/x/resolve/main/none", None, 404, "EntryNotFound"),
        ("/tester/x/resolve/none/config.json", None, 404, "RevisionNotFound"),
        ("/tester/none/resolve/main/config.json", None, 401, "RepoNotFound"),
        ("/tester/none/resolve/main/config.json", "valid", 404, "RepoNotFound"),
        ("/none/resolve/main/config.json", "valid", 404, "RepoNotFound"),
        ("/tester/private/resolve/main/config.json", None, 401, "RepoNotFound"),
        ("/tester/private/resolve/main/config.json", "valid", 200, None),
        ("/org/gated/resolve/main/config.json", None, 401, "GatedRepo"),
        ("/org/gated/resolve/main/config.json", "valid", 403, "GatedRepo"),
        ("/api/models/org/gated", None, 200, None),
        ("/tester/x/resolve/main/config.json", "hf_wrong", 401, None),
        ("/api/whoami-v2", "hf_wrong", 401, None),
        ("/api/whoami-v2", None, 401, None),
        ("/api/datasets/tester/x/parquet", None, 404, None),
    ],
)
def test_refusals(hub, path, token, status, code):
    hub.add("models", "tester/x", MODEL)
    hub.add("models", "tester/private", MODEL, private=True)
    hub.add("models", "org/gated", MODEL, gated=True)
    for method in ["GET", "HEAD"] if "/resolve/" in path else ["GET"]:
        got, headers, _ = ask(hub, method, path, token=hub.token if token == "valid" else token)
        assert (got, headers.get("X-Error-Code")) == (status, code)
        assert token != "hf_wrong" or "Invalid credentials" in headers["X-Error-Message"]


def test_terms_can_be_accepted(hub):
    hub.add("models", "org/gated", MODEL, gated=True)
    hub.accepted.add(("models", "org/gated"))
    assert ask(hub, "GET", "/org/gated/resolve/main/config.json", token=hub.token)[0] == 200


def test_writing_needs_a_write_token_of_the_owner(hub):
    for token, owner, status in [(None, "tester", 401), ("read", "tester", 403), ("write", "google", 403)]:
        token = {"read": hub.read_token, "write": hub.token}.get(token)
        body = json.dumps({"name": "x", "organization": owner})
        assert ask(hub, "POST", "/api/repos/create", body, token)[0] == status
    assert not hub.repos


@pytest.mark.parametrize(
    "asked, start, end", [("bytes=10-19", 10, 20), ("bytes=1000-", 1000, 1024), ("bytes=-4", 1020, 1024)]
)
def test_ranges(hub, asked, start, end):
    hub.add("models", "tester/x", MODEL)
    status, headers, body = ask(hub, "GET", "/tester/x/resolve/main/model.safetensors", Range=asked)
    assert status == 206 and body == MODEL["model.safetensors"][start:end]
    assert headers["Content-Range"] == f"bytes {start}-{end - 1}/1024"


def test_cut_never_gives_the_second_half(hub):
    hub.add("models", "tester/x", MODEL)
    hub.fail("cut", path="safetensors")
    for headers, got in [({}, 512), ({"Range": "bytes=500-"}, 12), ({"Range": "bytes=512-"}, 0)]:
        with pytest.raises(http.client.IncompleteRead) as error:
            ask(hub, "GET", "/tester/x/resolve/main/model.safetensors", **headers)
        assert len(error.value.partial) == got
    assert hub.log[-1] == ("GET", "/tester/x/resolve/main/model.safetensors", "cut")


def test_times_method_path_and_heal(hub):
    hub.add("models", "tester/x", MODEL)
    hub.fail(429, path="config", method="GET", times=2, retry_after=7)
    page = "/tester/x/resolve/main/config.json"
    assert ask(hub, "HEAD", page)[0] == 200
    assert ask(hub, "GET", page)[1]["Retry-After"] == "7"
    assert [ask(hub, "GET", page)[0] for _ in range(2)] == [429, 200]
    hub.fail("refuse")
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        ask(hub, "GET", page)
    hub.heal()
    assert ask(hub, "GET", page)[0] == 200
    assert [status for *_, status in hub.log] == [200, 429, 429, 200, "refuse", 200]
    with pytest.raises(ValueError, match="choose one of"):
        hub.fail("explode")


def test_timeout_ends_when_the_server_stops():
    hub, done = HubServer().start(), []
    hub.fail("timeout")

    def client():
        with pytest.raises((http.client.HTTPException, OSError)):
            ask(hub, "GET", "/api/whoami-v2", timeout=30)
        done.append(True)

    thread = threading.Thread(target=client)
    thread.start()
    time.sleep(0.2)
    hub.stop()
    thread.join(timeout=1)
    assert done == [True]
    with pytest.raises(ConnectionRefusedError):
        ask(hub, "GET", "/api/whoami-v2")
    hub.heal()
    with hub.start():
        assert ask(hub, "GET", "/api/whoami-v2", token=hub.token)[0] == 200


# -- the real clients --------------------------------------------------------------------------------------


def client_of(hub, **variables):
    """Point this process, which has not imported a client yet, to the server."""
    assert "huggingface_hub" not in sys.modules
    os.environ.update(hub.env(os.environ["HF_HOME"], **variables))


def test_clients_push_and_load_then_offline(tmp_path):
    online = run("clients", tmp_path)
    assert online.returncode == 0, online.stderr[-6000:]
    facts = json.loads(online.stdout.splitlines()[-1])
    offline = run("offline", tmp_path, facts, HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    assert offline.returncode == 0, offline.stderr[-6000:]


def clients():
    """Every client the project uses, once through the whole way."""
    with HubServer() as hub:
        client_of(hub)
        from hub_content import tiny_datasets, tiny_models

        tiny_models(hub)
        tiny_datasets(hub)
        push_folders(hub)
        push_models(hub)
        scores = load_real_ids(hub)
        load_datasets(hub)
        push_dataset(hub)
        assert hub.token.encode() not in hub.everything()
        leak_is_found(hub)
        print(json.dumps(scores))


def push_folders(hub):
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    api, folder = HfApi(), Path(os.environ["HF_HOME"], "up")
    (folder / "deep").mkdir(parents=True)
    (folder / "deep/model.safetensors").write_bytes(os.urandom(100_000))
    (folder / "README.md").write_text("---\nlicense: mit\ntags: [gdkd]\n---\n# Card\n")
    assert api.create_repo("tester/folder").repo_id == api.create_repo("folder", exist_ok=True).repo_id
    first = api.upload_folder(folder_path=folder, repo_id="tester/folder").oid
    second = api.upload_folder(folder_path=folder, repo_id="tester/folder", delete_patterns="*.json").oid
    assert first == second, "nothing changed, so no commit"
    (folder / "README.md").write_text("# No metadata\n")
    api.upload_file(path_or_fileobj=b"{}", path_in_repo="new.json", repo_id="tester/folder")
    api.delete_folder("deep", "tester/folder")
    assert set(hub.files("models", "tester/folder")) == {".gitattributes", "README.md", "new.json"}
    old = Path(snapshot_download("tester/folder", revision=first))
    assert (old / "deep/model.safetensors").read_bytes() == (folder / "deep/model.safetensors").read_bytes()
    assert api.model_info("tester/folder").card_data.license == "mit"
    assert [c.commit_id for c in api.list_repo_commits("tester/folder")][2] == first
    api.create_tag("tester/folder", tag="v1", revision=first)
    assert api.file_exists("tester/folder", "deep/model.safetensors", revision="v1")
    for error, call in [
        (
            ValueError,
            lambda: api.upload_file(
                path_or_fileobj=b"---\na: [\n---\n", path_in_repo="README.md", repo_id="tester/folder"
            ),
        ),
        (RevisionNotFoundError, lambda: snapshot_download("tester/folder", revision="none")),
        (RepositoryNotFoundError, lambda: snapshot_download("tester/none")),
        (RepositoryNotFoundError, lambda: snapshot_download("tester/none", token=False)),
        (HfHubHTTPError, lambda: api.whoami("hf_wrong")),
        (
            HfHubHTTPError,
            lambda: api.upload_file(path_or_fileobj=b"", path_in_repo="x", repo_id="timm/resnet18.a1_in1k"),
        ),
    ]:
        with pytest.raises(error):
            call()


def push_models(hub):
    import torch
    from transformers import AutoImageProcessor, Trainer, TrainingArguments, ViTConfig, ViTImageProcessor
    from transformers import AutoModelForImageClassification as Auto

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = Auto.from_config(ViTConfig(image_size=32, patch_size=8, num_labels=3, **small))
    first = model.push_to_hub("tester/student").oid
    ViTImageProcessor(image_mean=[0.1, 0.2, 0.3]).push_to_hub("tester/student")
    old = model.classifier.bias.detach().clone()
    torch.nn.init.ones_(model.classifier.bias)
    model.push_to_hub("tester/student")
    assert any(method == "PUT" and "lfs" in target for method, target, _ in hub.log)
    assert Auto.from_pretrained("tester/student").classifier.bias.tolist() == [1, 1, 1]
    assert Auto.from_pretrained("tester/student", revision=first).classifier.bias.equal(old)
    assert list(AutoImageProcessor.from_pretrained("tester/student").image_mean) == [0.1, 0.2, 0.3]
    out = Path(os.environ["HF_HOME"], "out")
    args = TrainingArguments(out, push_to_hub=True, hub_model_id="tester/trained", hub_private_repo=True, use_cpu=True)
    Trainer(model, args).push_to_hub(dataset="timm/mini-imagenet")
    assert "model.safetensors" in hub.files("models", "tester/trained")
    assert hub.repos["models", "tester/trained"].private


def load_real_ids(hub):
    """Accuracy of each tiny model on the tiny mini-imagenet, through its own processor: {id: top-1}."""
    import torch
    from datasets import load_dataset
    from hub_content import CLASSES, descriptions
    from transformers import AutoImageProcessor
    from transformers import AutoModelForImageClassification as Auto

    rows, scores = load_dataset("timm/mini-imagenet", split="validation"), {}
    truth = torch.tensor([CLASSES[label] for label in rows["label"]])
    for name in [repo_id for kind, repo_id in hub.repos if kind == "models" and not repo_id.startswith("tester")]:
        model, processor = Auto.from_pretrained(name).eval(), AutoImageProcessor.from_pretrained(name)
        assert model.config.num_labels == 1000
        assert [model.config.id2label[i] for i in range(1000)] == list(descriptions())
        size = len(hub.files("models", name)["model.safetensors"])
        assert size < 2_000_000
        with torch.no_grad():
            inputs = processor(list(rows["image"]), return_tensors="pt")
            scores[name] = (model(**inputs).logits.argmax(-1) == truth).float().mean().item()
    assert len(scores) == 4 and min(scores.values()) > 0.3, scores
    return scores


def load_datasets(hub):
    import datasets
    from datasets import load_dataset
    from hub_content import CLASSES, imagenet_labels, synsets

    mini = load_dataset("timm/mini-imagenet")
    assert {split: len(rows) for split, rows in mini.items()} == {
        "train": 400,
        "validation": 200,
        "test": 200,
    }
    assert mini["train"].features["label"].names == [synsets()[i] for i in CLASSES]
    streamed = next(iter(load_dataset("timm/mini-imagenet", split="train", streaming=True)))
    assert streamed["image"].size == mini["train"][0]["image"].size == (48, 40)
    no_card = {k: v for k, v in hub.files("datasets", "timm/mini-imagenet").items() if k != "README.md"}
    hub.add("datasets", "tester/no-card", no_card)
    assert load_dataset("tester/no-card", split="test").features == mini["test"].features

    folder = load_dataset("tester/tiny-imagefolder")
    assert len(folder["train"]) == 40 and "tench" in folder["train"].features["label"].names
    shown = next(iter(load_dataset("tester/tiny-imagefolder", split="test", streaming=True)))
    assert shown["image"].mode == "RGB"

    with pytest.raises(datasets.exceptions.DatasetNotFoundError, match=r"gated.*ask for access"):
        load_dataset("ILSVRC/imagenet-1k")
    with pytest.raises(datasets.exceptions.DatasetNotFoundError, match=r"gated.*authenticated"):
        load_dataset("ILSVRC/imagenet-1k", token=False)
    hub.accepted.add(("datasets", "ILSVRC/imagenet-1k"))
    full = load_dataset("ILSVRC/imagenet-1k")
    assert full["train"].features["label"].names == imagenet_labels()
    assert set(full["test"]["label"]) == {-1}


def push_dataset(hub):
    from datasets import Dataset, load_dataset

    Dataset.from_dict({"label": [0, 1, 2]}).push_to_hub("tester/numbers", private=True)
    Dataset.from_dict({"label": [3]}).push_to_hub("tester/numbers", split="test")
    assert load_dataset("tester/numbers")["train"]["label"][:] == [0, 1, 2]
    assert "data/test-00000-of-00001.parquet" in hub.files("datasets", "tester/numbers")


def leak_is_found(hub):
    """A token inside a pushed file is seen by `everything`, whether the file goes as text or through LFS."""
    from huggingface_hub import HfApi

    for path in ["notes.txt", "data.bin"]:
        hub.received.clear()
        HfApi().upload_file(path_or_fileobj=b"x " + hub.token.encode(), path_in_repo=path, repo_id="tester/folder")
        assert hub.token.encode() in hub.everything()


def offline(scores):
    """The cache which `clients` filled is enough; without it the client says what is missing."""
    from datasets import load_dataset
    from transformers import AutoImageProcessor
    from transformers import AutoModelForImageClassification as Auto

    for name in [*scores, "tester/student"]:
        Auto.from_pretrained(name)
        AutoImageProcessor.from_pretrained(name)
    assert len(load_dataset("timm/mini-imagenet", split="train")) == 400
    with pytest.raises(OSError, match=r"offline|cached"):
        Auto.from_pretrained("tester/never-seen")
    with pytest.raises(ConnectionError, match="never-seen"):
        load_dataset("tester/never-seen")


# -- the real clients when the Hub fails -------------------------------------------------------------------


def test_clients_meet_every_failure(tmp_path):
    result = run("failures", tmp_path, HF_HUB_ETAG_TIMEOUT="1", HF_HUB_DOWNLOAD_TIMEOUT="1")
    assert result.returncode == 0, result.stdout + result.stderr[-6000:]


def failures():
    """Each failure at each stage is an error of the client, and nothing is committed; then all works again.

    The clients wait between their retries; here the waits are noted instead.
    """
    with HubServer() as hub:
        client_of(hub)
        import huggingface_hub
        from datasets import load_dataset
        from hub_content import tiny_datasets, tiny_models
        from transformers import AutoModelForImageClassification as Auto

        tiny_models(hub, trained=False)
        tiny_datasets(hub)
        waits, sleep, main = [], time.sleep, threading.main_thread()
        time.sleep = lambda s: waits.append(s) if threading.current_thread() is main else sleep(min(s, 0.01))
        name, home = "google/vit-base-patch16-224", os.environ["HF_HOME"]
        folder = Path(home, "up")
        folder.mkdir()
        expected = (OSError, RuntimeError, *huggingface_hub.utils._http._DEFAULT_RETRY_ON_EXCEPTIONS)

        def upload(name):
            huggingface_hub.create_repo(f"tester/{name}", exist_ok=True)
            (folder / "model.safetensors").write_bytes(os.urandom(50_000))
            huggingface_hub.upload_folder(folder_path=folder, repo_id=f"tester/{name}")

        stages = {
            "resolve": lambda name_: Auto.from_pretrained(name, cache_dir=f"{home}/{name_}"),
            "resolve.*parquet": lambda name_: load_dataset("timm/mini-imagenet", cache_dir=f"{home}/{name_}"),
            "repos/create": upload,
            "lfs-upload": upload,
            "/commit/": upload,
        }
        for mode in ["stopped", "refuse", "timeout", "cut", 401, 403, 429, 500]:
            patient = huggingface_hub.utils._http.default_client_factory
            huggingface_hub.set_client_factory(impatient_client if mode == "timeout" else patient)
            for path, stage in stages.items():
                if mode == "stopped":
                    hub.stop()
                else:
                    hub.fail(mode, path=path)
                try:
                    stage(f"{mode}-failed")
                except expected as error:
                    print(mode, path, type(error).__name__)
                else:
                    raise AssertionError(f"{path} did not notice {mode}")
                assert not [log for log in hub.log if log[2] == 200 and "/commit/" in log[1]]
                hub.heal()
                hub.start()

        # a failure that passes is not noticed
        waits.clear()
        hub.fail(429, path="resolve.*safetensors", times=2, retry_after=7)  # the first try does not wait
        hub.fail(500, path="lfs-upload", times=2)
        hub.fail("cut", path="resolve.*parquet", method="GET", times=1)
        for path in ["resolve", "resolve.*parquet", "/commit/"]:
            stages[path]("healed")
        assert 8.0 in waits, "Retry-After and one second more"
        downloads = [status for method, target, status in hub.log if method == "GET" and "train-0" in target]
        assert downloads[-2:] == ["cut", 200], "a small file starts anew"
        assert len(hub.files("models", "tester/healed")["model.safetensors"]) == 50_000


def impatient_client():
    """huggingface_hub waits for ever in many calls (its time-out is None): here at most 0.2 s."""
    from huggingface_hub.utils._http import default_client_factory

    def limit(request):
        request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), 0.2)

    client = default_client_factory()
    client.event_hooks = {"request": [*client.event_hooks["request"], limit]}
    return client
