"""Ray's jobs, by the HTTP interface of its dashboard: submit, list, stop. The caller needs no Ray of its own.

https://docs.ray.io/en/latest/cluster/running-applications/job-submission/rest.html
"""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from robflat_bench.api import Exit, UsageError
from robflat_cluster.scheduler import Unanswered

PATIENCE, SUBMISSION_PATIENCE = 10.0, 30.0
"""Seconds until a request without an answer is given up. Ray takes its time for a cluster's first submission."""

LARGEST = 2**28
"""Bytes of an answer that is read. Ray keeps every job of the cluster, each with up to 20,000 characters of its log."""

HEADERS = "RAY_JOB_HEADERS"
"""Ray's own variable of HTTP headers for its jobs, as a JSON object: where a cluster asks for a token."""

NOT_BEGUN = "JOB_SUPERVISOR_ACTOR_START_TIMEOUT"
"""What Ray says of a job that waited 15 minutes (`RAY_JOB_START_TIMEOUT_SECONDS`) for its resources."""

CAUSES = {
    NOT_BEGUN: "waited too long",
    "JOB_SUPERVISOR_ACTOR_DIED": "node lost",
    "JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE": "node lost",
    "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE": "no such node",
    "JOB_SUPERVISOR_ACTOR_START_FAILURE": "not started",
    "JOB_ENTRYPOINT_COMMAND_START_ERROR": "ended while Ray started or stopped it",
    "RUNTIME_ENV_SETUP_FAILURE": "runtime environment not set up",
}
"""Ray's error -> what ended a job that left no exit code."""


class Row(BaseModel):
    """A job in Ray's table, as its dashboard lists it. Jobs that were not submitted by this interface have no id."""

    model_config = ConfigDict(frozen=True)

    submission_id: str | None = None
    status: Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]
    driver_exit_code: int | None = None
    error_type: str | None = None
    message: str | None = None
    driver_agent_http_address: str | None = None

    @property
    def id(self) -> str:
        return self.submission_id or ""

    @property
    def ended(self) -> bool:
        return self.status not in ("PENDING", "RUNNING")

    @property
    def never_begun(self) -> bool:
        """Whether Ray gave it up while it waited."""
        return self.error_type == NOT_BEGUN

    @property
    def exit(self) -> Exit:
        """How the job ended. Ray keeps no exit code of a job that it stopped or lost."""
        if self.status == "STOPPED":
            return Exit(None, "stopped")
        if self.status == "SUCCEEDED":
            return Exit(0)
        if self.driver_exit_code is not None:
            return Exit(self.driver_exit_code)
        return Exit(None, f"{CAUSES.get(self.error_type or '', 'failed')}: {self._why}")

    @property
    def _why(self) -> str:
        """Ray's message in one line: its first one, or the last one of a traceback."""
        lines = [line.strip() for line in (self.message or "").splitlines() if line.strip()]
        if not lines:
            return "Ray does not say why"
        return lines[-1 if lines[0].startswith("Traceback") else 0][:200]

    @property
    def standing(self) -> str:
        """Where an unended job stands: "queued", "running (on 10.0.0.7)"."""
        if self.status == "PENDING":
            return "queued"
        node = urllib.parse.urlsplit(self.driver_agent_http_address or "").hostname
        return f"running (on {node})" if node else "running"


_TABLE = TypeAdapter(list[Row])


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: the headers may hold a token, which is for the address that the user gave."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Cluster:
    """A Ray cluster, by the address of its dashboard.

    Parameters
    ----------
    address : str
        "http://HOST:8265", or with a path.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self._headers = {"Content-Type": "application/json", **_headers()}
        self._opener = urllib.request.build_opener(_NoRedirect)

    def table(self) -> list[Row]:
        """The jobs that were submitted to this cluster since it began.

        Raises
        ------
        Unanswered
            Nothing answers, or something else than Ray.
        """
        try:
            return [row for row in _TABLE.validate_json(self._ask("/api/jobs/")) if row.id]
        except urllib.error.HTTPError as error:
            raise Unanswered(_said(error)) from None
        except ValidationError:
            raise Unanswered("the answer is no list of jobs, so it is not from Ray's dashboard") from None

    def submit(self, id: str, entrypoint: str, variables: Mapping[str, str], needs: Mapping[str, int]) -> None:
        """Submit a job, unless there is one with this id already: Ray accepts each id once.

        Parameters
        ----------
        id : str
            Its submission id.
        entrypoint : str
            A line for `sh`.
        variables : Mapping of str to str
            Variables of its environment.
        needs : Mapping of str to int
            "num_cpus", "num_gpus" and "memory" (bytes) that Ray reserves for it.

        Raises
        ------
        Unanswered
            Ray may accept it later, or has accepted it without an answer.
        UsageError
            Ray refuses it.
        """
        asked = {f"entrypoint_{name}": value for name, value in needs.items()}
        runtime = {"runtime_env": {"env_vars": dict(variables)}}
        body = {"submission_id": id, "entrypoint": entrypoint, **runtime, **asked}
        try:
            self._ask("/api/jobs/", body, SUBMISSION_PATIENCE)
        except urllib.error.HTTPError as error:
            said = _said(error)
            if "already exists" in said:
                return
            if error.code >= 500:
                raise Unanswered(said) from None
            raise UsageError(f"Ray at {self.address} refuses the job: {said}; see `robflat-bench info ray`") from None

    def stop(self, id: str) -> bool:
        """Send SIGTERM to a job; False if Ray has not made its process yet, or no more.

        Raises
        ------
        Unanswered
            Nothing answers.
        """
        try:
            return b"true" in self._ask(f"/api/jobs/{urllib.parse.quote(id, safe='')}/stop", {})
        except urllib.error.HTTPError as error:
            raise Unanswered(_said(error)) from None

    def _ask(self, path: str, body: Mapping[str, Any] | None = None, patience: float = PATIENCE) -> bytes:
        """Send a request; returns the body of the answer."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, self._headers)
        try:
            with self._opener.open(request, timeout=patience) as answer:
                found: bytes = answer.read(LARGEST)
                return found
        except urllib.error.HTTPError:
            raise
        except (OSError, http.client.HTTPException) as error:
            raise Unanswered(str(getattr(error, "reason", "") or error or type(error).__name__)) from None


def _headers() -> dict[str, str]:
    """The headers of `RAY_JOB_HEADERS`."""
    try:
        return TypeAdapter(dict[str, str]).validate_json(os.environ.get(HEADERS) or "{}")
    except ValidationError:  # its text would show the token
        wanted = """export RAY_JOB_HEADERS='{"Authorization": "Bearer TOKEN"}'"""
        raise UsageError(f"{HEADERS} is no JSON object of texts: {wanted}") from None


def _said(error: urllib.error.HTTPError) -> str:
    """What an answer with an error says, in one line: the last one, for Ray sends tracebacks."""
    try:
        with error:
            text = error.read(100_000).decode("utf-8", errors="replace")
    except (OSError, http.client.HTTPException):
        text = ""
    found = next((line for line in text.splitlines() if "already exists" in line), "")
    lines = [line.strip() for line in text.splitlines() if line.strip(" .")]
    return f"HTTP {error.code}: {(found.strip() or (lines or [error.reason])[-1])[:300]}"
