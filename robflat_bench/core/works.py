"""The works that components cite, in `works.toml`: a row's citation and the BibTeX entries of the site come from it.

citation=cite("madry2018towards")    ->    "Madry et al.: Towards deep learning models resistant to adversarial
                                            attacks. ICLR 2018, arXiv 1706.06083"
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources

MOST_NAMED = 3
"""Authors that a citation names; of longer lists it names the first."""


@dataclass(frozen=True)
class Work:
    """A paper.

    Parameters
    ----------
    key : str
        Key of its BibTeX entry.
    authors : tuple of str
        "Surname, Given names" in the paper's order.
    title : str
    year : int
    venue : str
        Short name of the conference, a key of `VENUES`.
    journal : str
    pages : str
        First and last page, "1--42".
    arxiv, openreview, doi : str
        Identifiers.
    """

    key: str
    authors: tuple[str, ...]
    title: str
    year: int
    venue: str = ""
    journal: str = ""
    pages: str = ""
    arxiv: str = ""
    openreview: str = ""
    doi: str = ""

    @property
    def citation(self) -> str:
        """Surnames, title, place, year and identifier in one line."""
        surnames = [author.partition(",")[0] for author in self.authors]
        named = ", ".join(surnames) if len(surnames) <= MOST_NAMED else f"{surnames[0]} et al."
        title = self.title if self.title[-1] in "?!" else f"{self.title}."
        places = {"arXiv": self.arxiv, "OpenReview": self.openreview, "doi": self.doi}
        where = [f"{place} {identifier}" for place, identifier in places.items() if identifier]
        published = self.venue or self.journal
        parts = [f"{published} {self.year}", *where] if published else [*where, str(self.year)]
        return f"{named}: {title} {', '.join(parts)}"


_FILE = tomllib.loads((resources.files("robflat_bench.core") / "works.toml").read_text("utf-8"))
VENUES: dict[str, str] = _FILE["venues"]
"""Short name of a conference -> its name."""
WORKS = {key: Work(key, tuple(row.pop("authors")), **row) for key, row in _FILE["works"].items()}
"""Every work by its key."""


def cite(*keys: str) -> str:
    """The citations of these works, separated by semicolons. KeyError where `works.toml` lacks a key."""
    return "; ".join(WORKS[key].citation for key in keys)
