"""Surroundings of data sets."""

import pytest


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path_factory):
    """A cache of its own, and no network."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("ROBFLAT_BENCH_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.delenv("ROBFLAT_BENCH_DATA", raising=False)
    return cache
