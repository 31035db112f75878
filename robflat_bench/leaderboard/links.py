"""Where the site stands and what it links to, from `leaderboard/site.toml`; what it does not name is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from robflat_bench.core import Strict
from robflat_bench.leaderboard.tree import read_toml

FILE = "site.toml"
Address = Annotated[str, Field(pattern=r'^(https://[^\s"<>\\]{1,300})?$')]


class Links(Strict):
    """Addresses that begin with https://, or "". site: of the site itself, for its feed, its badges and its metadata.
    issues: where problems of an entry are reported."""

    site: Address = ""
    docs: Address = ""
    code: Address = ""
    paper: Address = ""
    issues: Address = ""

    @property
    def titled(self) -> list[tuple[str, str]]:
        """Title and address of the pages elsewhere that are named."""
        named = self.model_dump(exclude={"site"}).items()
        return [(name.capitalize(), address) for name, address in named if address]

    @property
    def base(self) -> str:
        """The address of the site, ending in /, so that a path can follow; "" if it is not known."""
        return self.site and f"{self.site.rstrip('/')}/"


def links(root: Path) -> Links:
    """The links of the leaderboard below `root`. Raises CheckFailed where their file is not valid."""
    return read_toml(root / FILE, "links", Links)
