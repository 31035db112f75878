"""Faults of components that would end the process without a word."""

import click
import pytest
from helpers.fake_records import REGISTRY

from robflat_bench.core import RunFailed
from robflat_bench.core.faults import one_line
from robflat_bench.registry.faults import faults


def test_exceptions_of_click_and_broken_pipes_are_faults():
    for error in (click.exceptions.Exit(0), click.Abort(), click.UsageError("x"), BrokenPipeError(32, "pipe")):
        with pytest.raises(RunFailed), faults(REGISTRY):
            raise error


def test_an_error_whose_text_raises_has_a_line():
    class Bad(Exception):
        def __str__(self):
            raise SystemExit(0)

    assert one_line(Bad()).startswith("Bad: ")
