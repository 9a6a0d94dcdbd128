"""Fixtures that several tests share. Threads are few: tiny models are slower with more."""

import os
import shutil

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def local_hub(tmp_path_factory):
    """A local Hub with the small models and data sets, and forks that talk to it."""
    from forks import Forks
    from hub_content import tiny_datasets, tiny_models
    from hub_server import HubServer

    with HubServer() as hub, Forks(hub, tmp_path_factory.mktemp("forks")) as forks:
        tiny_models(hub)
        tiny_datasets(hub)
        yield hub, forks


@pytest.fixture
def hub(local_hub):
    """That Hub, whole again."""
    local_hub[0].heal()
    return local_hub[0]


@pytest.fixture
def forks(local_hub):
    """Those forks; no runs of other tests are in their folder."""
    shutil.rmtree(local_hub[1].folder / "runs", ignore_errors=True)
    return local_hub[1]
