"""Requests to the Hub: how long they may take, which failures are retried, and what a failure means."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub import constants, get_session, get_token, set_client_factory
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

LONGEST_WAIT = 60.0  # seconds for an answer, unless HF_HUB_DOWNLOAD_TIMEOUT is set
WAITS = (1.0, 5.0, 30.0)  # seconds before each retry of a transient error

# What a download or an upload may raise.
HUB_ERRORS = (OSError, ValueError, RuntimeError, httpx.HTTPError, RevisionResolutionError)

Result = TypeVar("Result")


def bound_waiting() -> None:
    """Limit how long a request to the Hub may take; huggingface_hub sets no limit for most of them.

    The limit is a minute, or HF_HUB_DOWNLOAD_TIMEOUT seconds. It replaces the HTTP client of the whole process, so only
    the commands call it; huggingface_hub has no setting for it.
    """
    limit = float(os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT") or LONGEST_WAIT)
    hooks = get_session().event_hooks["request"]  # of huggingface_hub, such as the one that enforces offline mode

    def bound(request: httpx.Request) -> None:
        asked = request.extensions["timeout"]  # seconds by phase: connect, read, write, pool
        request.extensions["timeout"] = {phase: min(seconds or limit, limit) for phase, seconds in asked.items()}

    set_client_factory(
        lambda: httpx.Client(timeout=limit, event_hooks={"request": [*hooks, bound]}, follow_redirects=True)
    )


def retried(call: Callable[[], Result]) -> Result:
    """Call `call()`, and call it again after each of WAITS while it fails with a transient error.

    Transient errors are a broken connection, too many requests (429) and a server error (5xx). A request that timed
    out is not retried: it has taken a minute already. huggingface_hub retries single downloads and uploads of files
    itself, but neither commits nor look-ups.
    """
    for wait in WAITS:
        try:
            return call()
        except HUB_ERRORS as error:
            if not any(_is_transient(cause) for cause in _causes(error)):
                raise
            logger.warning("A request to the Hub failed; transient errors are retried: next try in %g s.", wait)
        time.sleep(wait)
    return call()


def hub_reason(
    error: Exception,
    name: str,
    *,
    revision: str | None = None,
    kind: str = "model",
    token: str | None = None,
    flag: str = "--hub_model_id",
) -> str | None:
    """Explain a failure at the Hub and what to do about it, in one sentence; None for any other failure.

    Args:
        error: what a library raised; its causes are examined too, the outermost first.
        name: id of the repository.
        revision: the requested revision.
        kind: "model" or "data set" for a download, or "upload".
        token: the token that was used, if it is not the stored one.
        flag: the one that names the repository of an upload.
    """
    url = f"https://huggingface.co/{'datasets/' if kind == 'data set' else ''}{name}"
    log_in = "log in with `hf auth login`, or set HF_TOKEN to a token"
    causes = _causes(error)
    for cause in causes:
        if isinstance(cause, GatedRepoError) or "is a gated dataset" in str(cause):
            return f"the repository is gated: accept its terms at {url}, and {log_in}."
        if isinstance(cause, RevisionNotFoundError):
            return f"it has no revision {revision!r}: use a branch, tag or commit listed at {url}/commits/main."
        if isinstance(cause, RepositoryNotFoundError):
            return f"the Hub has no repository of that name, or it is private: check {url}, or {log_in}."
        if isinstance(cause, HFValidationError):
            use = f"{flag} organization/name" if kind == "upload" else "organization/name"
            return f"that is not a valid id on the Hub: use {use}."
        absent = isinstance(cause, LocalEntryNotFoundError) and constants.is_offline_mode()
        if absent or isinstance(cause, OfflineModeIsEnabled):
            cached = "" if kind == "upload" else ", and it is not in the cache"
            return f"HF_HUB_OFFLINE is set, so the Hub cannot be queried{cached}: run once with HF_HUB_OFFLINE=0."
        status = _status(cause)
        if status == 401 and not (token or get_token()):
            return f"there is no token to log in to the Hub with: {log_in}."
        if status == 401:
            return f"the Hub does not accept the token (401): {log_in}."
        if status == 403:
            other = f", or another {flag}" if kind == "upload" else ""
            return f"the token has no access to it (403): use one that has, with `hf auth login` or HF_TOKEN{other}."
        if status == 429:
            return "the Hub received too many requests (429): try again in a few minutes."
        if status is not None and status >= 500:
            return f"the Hub has an internal error ({status}): try again later."
        if isinstance(cause, httpx.TransportError | ConnectionError):
            late = isinstance(cause, httpx.TimeoutException)
            failure = "did not answer in time" if late else "did not answer, or closed the connection"
            return f"{constants.ENDPOINT} {failure}: check the network, and try again."
    if any(isinstance(cause, LocalEntryNotFoundError) for cause in causes):
        return f"{constants.ENDPOINT} did not send one of its files: check the network, and try again."
    return None


def _causes(error: BaseException | None) -> list[BaseException]:
    causes: list[BaseException] = []
    while error is not None and error not in causes:  # an error that was raised twice can be its own cause
        causes.append(error)
        error = error.__cause__ or error.__context__
    return causes


def _status(error: BaseException) -> int | None:
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def _is_transient(error: BaseException) -> bool:
    broken = isinstance(error, httpx.TransportError) and not isinstance(error, httpx.TimeoutException)
    status = _status(error)
    return broken or (status is not None and (status == 429 or status >= 500))
