"""Sizes of a run, the table of ratios it ends with, and its record.

uv run --group bench pytest benchmarks                       # minutes to an hour; the machine should be idle
uv run --group bench pytest benchmarks --quick               # whether it all still runs
uv run --group bench pytest benchmarks --draws 10 --record benchmarks/records/speed.json
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from race import Board, lines
from subject import Settings

from robflat_bench.runs import environment

BOARD = pytest.StashKey[Board]()
OPTIONS = ("batch", "width", "rounds", "draws", "threads", "aa_examples", "aa_iterations", "aa_targets", "aa_queries")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("robflat-bench", "sizes of the benchmarks")
    group.addoption("--quick", action="store_true", help="tiny sizes: whether it runs; ratios mean nothing")
    defaults = {field.name: field.default for field in fields(Settings)}
    for name in OPTIONS:
        group.addoption(f"--{name.replace('_', '-')}", type=int, help=f"default {defaults[name]}")
    group.addoption("--record", type=Path, help="write medians, ratios and the machine into this JSON file")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.stash[BOARD] = Board()
    config.option.benchmark_columns = ["median", "iqr", "rounds"]


def _settings(config: pytest.Config) -> Settings:
    chosen = {name: value for name in OPTIONS if (value := config.getoption(name)) is not None}
    return replace(Settings.quick() if config.getoption("quick") else Settings(), **chosen)


@pytest.fixture(scope="session")
def settings(pytestconfig: pytest.Config) -> Settings:
    return _settings(pytestconfig)


@pytest.fixture(scope="session")
def board(pytestconfig: pytest.Config) -> Board:
    return pytestconfig.stash[BOARD]


@pytest.fixture(scope="session", autouse=True)
def _threads(settings: Settings) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    yield
    torch.set_num_threads(before)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    board = config.stash[BOARD]
    tables = {
        "ratios: rival over ours, medians of rounds; limit: the convolutions alone": board.ratios,
        "equality, before speed": board.checks,
        **board.tables,
    }
    for title, rows in tables.items():
        if rows:
            terminalreporter.section(title)
            for line in lines(rows):
                terminalreporter.write_line(line)
    path = config.getoption("record")
    if path is not None:
        machine = {**environment.describe(), **environment.torch_environment("cpu")}
        record = {"settings": asdict(_settings(config)), **asdict(board), "environment": machine}
        path.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
