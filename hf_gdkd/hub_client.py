"""The connection to the Hub: how long it waits, what is tried again, and what a failure means."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub import constants, get_session, set_client_factory
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.utils import httpx

logger = logging.getLogger(__name__)

LONGEST_WAIT = 60.0  # seconds for an answer, where HF_HUB_DOWNLOAD_TIMEOUT does not say another number
WAITS = (1.0, 5.0, 30.0)  # seconds between tries of what may pass

# What a download or an upload raises.
HUB_ERRORS = (OSError, ValueError, RuntimeError, httpx.HTTPError, RevisionResolutionError)

Result = TypeVar("Result")


def bound_waiting() -> None:
    """Let no request to the Hub wait for ever; huggingface_hub sets no limit to most.

    The limit is a minute, or the seconds in the environment's HF_HUB_DOWNLOAD_TIMEOUT.
    """
    limit = float(os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT") or LONGEST_WAIT)
    hooks = get_session().event_hooks["request"]  # the library's own, such as the one that keeps offline mode

    def bound(request: httpx.Request) -> None:
        asked = request.extensions["timeout"]  # seconds by phase: connect, read, write, pool
        request.extensions["timeout"] = {phase: min(seconds or limit, limit) for phase, seconds in asked.items()}

    set_client_factory(
        lambda: httpx.Client(timeout=limit, event_hooks={"request": [*hooks, bound]}, follow_redirects=True)
    )


def retried(call: Callable[[], Result]) -> Result:
    """`call()`, tried again after each of WAITS when it failed for a reason that may pass.

    Such are a broken connection, too many requests (429) and an error of the server (5xx); not a server that leaves
    a request without an answer, which has taken its minute.
    """
    for wait in WAITS:
        try:
            return call()
        except HUB_ERRORS as error:
            if not any(_may_pass(cause) for cause in _causes(error)):
                raise
            logger.warning("The Hub did not take a request; it is tried again in %g s.", wait)
        time.sleep(wait)
    return call()


def hub_reason(error: Exception, name: str, *, revision: str | None = None, kind: str = "model") -> str | None:
    """What a failure at the Hub means and what to do about it, in one sentence; None when it is another failure.

    Args:
        error: what a library raised; its causes are looked at too, the outermost first.
        name: id of the repository.
        revision: the revision that was asked for.
        kind: "model" or "data set", which were to be read, or "upload".
    """
    url = f"https://huggingface.co/{'datasets/' if kind == 'data set' else ''}{name}"
    log_in = "log in with `hf auth login`, or give a token as HF_TOKEN"
    causes = _causes(error)
    for cause in causes:
        if isinstance(cause, GatedRepoError) or "is a gated dataset" in str(cause):
            return f"its gate is closed: accept the terms at {url}, and {log_in}."
        if isinstance(cause, RevisionNotFoundError):
            return f"it has no revision {revision!r}: give a branch, tag or commit that {url}/commits/main lists."
        if isinstance(cause, RepositoryNotFoundError):
            return f"the Hub has none of that name, or it is private: look for it at {url}, or {log_in}."
        if isinstance(cause, HFValidationError):
            return "that is no id on the Hub: give organization/name."
        absent = isinstance(cause, LocalEntryNotFoundError) and constants.is_offline_mode()
        if absent or isinstance(cause, OfflineModeIsEnabled):
            cached = "" if kind == "upload" else ", and the cache does not hold it"
            return f"HF_HUB_OFFLINE forbids to ask the Hub{cached}: run it once with HF_HUB_OFFLINE=0."
        status = _status(cause)
        if status == 401:
            return f"the Hub does not accept the token (401): {log_in}."
        if status == 403:
            return "the token has no right to it (403): give one that has, with `hf auth login` or as HF_TOKEN."
        if status == 429:
            return "the Hub has had too many requests (429): try it again in some minutes."
        if status is not None and status >= 500:
            return f"the Hub has an error of its own ({status}): try it again later."
        if isinstance(cause, httpx.TransportError | ConnectionError):
            late = isinstance(cause, httpx.TimeoutException)
            failure = "did not answer in time" if late else "did not answer, or broke the connection"
            return f"{constants.ENDPOINT} {failure}: look at the network, and try it again."
    if any(isinstance(cause, LocalEntryNotFoundError) for cause in causes):
        return f"{constants.ENDPOINT} did not send a file of it: look at the network, and try it again."
    return None


def _causes(error: BaseException | None) -> list[BaseException]:
    causes: list[BaseException] = []
    while error is not None and error not in causes:  # an error that was raised twice may stand for its own cause
        causes.append(error)
        error = error.__cause__ or error.__context__
    return causes


def _status(error: BaseException) -> int | None:
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def _may_pass(error: BaseException) -> bool:
    broken = isinstance(error, httpx.TransportError) and not isinstance(error, httpx.TimeoutException)
    status = _status(error)
    return broken or (status is not None and (status == 429 or status >= 500))
