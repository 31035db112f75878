"""The site of the synthetic board in Chromium."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
from helpers import board_fixture

from robflat_bench.leaderboard.site.pages import render_site

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update"
)
OPTIONS = [f"--{flag}" for flag in (*FLAGS.split(), "disable-sync")]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        """Requests are not news."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The site on a disk."""
    place = tmp_path_factory.mktemp("site") / "below"
    for path, content in render_site(*board_fixture.make()).items():
        file = place / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return place


@pytest.fixture(scope="module")
def address(folder):
    """The site on a server, one folder below its root."""
    handler = functools.partial(Quiet, directory=str(folder.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/below/"
        server.shutdown()


def install():
    """Debian's Chromium, installed where it is absent and this user is root; otherwise these tests are skipped."""
    if CHROMIUM.exists():
        return
    words = ["apt-get", "install", "-y", "-qq", "-o=DPkg::Lock::Timeout=300", "--no-install-recommends", "chromium"]
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        pytest.skip(f"needs {CHROMIUM}: sudo {' '.join(words)}")
    for command in (["apt-get", "update", "-qq"], words):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"Chromium cannot be installed: {done.stderr.strip().splitlines()[-1:]}")


@pytest.fixture(scope="module")
def browser():
    from playwright import sync_api

    install()
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=OPTIONS)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, address):
    """`visit(path, **context)`: a page. Whatever it complains of, or asks of another origin, fails the test."""
    contexts, wrong = [], []

    def open_page(path, base=address, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: request.url.startswith(base) or wrong.append(request.url))
        page.on("response", lambda response: response.status < 400 or wrong.append(response.url))
        page.goto(base + path)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []
