"""The links of the site to pages elsewhere, from `leaderboard/site.toml`; what it does not name is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from robflat_bench.core import Strict
from robflat_bench.leaderboard.tree import read_toml

FILE = "site.toml"
Address = Annotated[str, Field(pattern=r'^(https://[^\s"<>\\]{1,300})?$')]


class Links(Strict):
    """Addresses that begin with https://, or "". issues: where problems of an entry are reported."""

    docs: Address = ""
    code: Address = ""
    paper: Address = ""
    issues: Address = ""

    @property
    def titled(self) -> list[tuple[str, str]]:
        """Title and address of those that are named."""
        return [(name.capitalize(), address) for name, address in self.model_dump().items() if address]


def links(root: Path) -> Links:
    """The links of the leaderboard below `root`. Raises CheckFailed where their file is not valid."""
    return read_toml(root / FILE, "links", Links)
