"""A stand-in of Ray's dashboard: the same questions and answers as Ray 2.60's, and jobs that a test moves by hand."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class JobsServer:
    """Jobs by their ids, the requests that came, and an error that answers all requests of a kind while it is set."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.errors: dict[str, tuple[int, str]] = {}
        self.loses_answers = False
        self.address = ""

    def job(self, id: str, status: str, **values: Any) -> None:
        """Put a job into the table."""
        self.jobs[id] = {"type": "SUBMISSION", "submission_id": id, "status": status, "entrypoint": "true", **values}

    def answer(self, kind: str, path: str, body: dict[str, Any]) -> tuple[int, str]:
        """Status and text of the answer to "GET", "POST" or "STOP"."""
        self.asked.append(f"{kind} {path}")
        if kind in self.errors:
            return self.errors[kind]
        if kind == "GET":
            driver = {"type": "DRIVER", "submission_id": None, "status": "RUNNING", "entrypoint": "notebook"}
            return 200, json.dumps([*self.jobs.values(), driver])
        if kind == "STOP":
            return 200, json.dumps({"stopped": path.split("/")[3] in self.jobs})
        self.bodies.append(body)
        id = body["submission_id"]
        if id in self.jobs:
            refused = f"ValueError: Job with submission_id {id} already exists. Please use a different submission_id."
            return 500, f"Traceback (most recent call last):\n  ...\n{refused}\n."
        self.job(id, "PENDING")
        return 200, json.dumps({"job_id": id, "submission_id": id})


@contextmanager
def jobs_server() -> Iterator[JobsServer]:
    """A server on a free port of loopback."""
    made = JobsServer()

    class Handler(BaseHTTPRequestHandler):
        def reply(self, kind: str) -> None:
            made.headers.append(dict(self.headers))
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, text = made.answer(kind, self.path, json.loads(body or b"{}"))
            if made.loses_answers:
                return
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", text)
            self.end_headers()
            self.wfile.write(text.encode())

        def do_GET(self) -> None:
            self.reply("GET")

        def do_POST(self) -> None:
            self.reply("STOP" if self.path.endswith("/stop") else "POST")

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
