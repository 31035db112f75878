"""The cache of decoded arrays is a convenience: without a place for it, arrays are computed."""

import pwd

import numpy as np

from robflat_bench.data.cache import cached


def test_a_user_without_home_or_account_needs_no_cache(monkeypatch, tmp_path):
    """As in a container under a number that has no account."""
    for name in ("HOME", "ROBFLAT_BENCH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def unknown(_):
        raise KeyError("no such user")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.chdir(tmp_path)
    found = cached("x", lambda: {"a": np.arange(3)}, lambda arrays: None)
    assert found["a"].tolist() == [0, 1, 2]
    assert not [*tmp_path.iterdir()]
