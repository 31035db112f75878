"""BibTeX of the benchmark, of the paper whose claims it tests, and of the works that components cite."""

from __future__ import annotations

import re

from robflat_bench import __version__
from robflat_bench.core.works import VENUES, WORKS, Work

BENCHMARK = """@software{{robflatbench,
  title = {{robflat-bench: adversarially robust generalization and flat minima}},
  author = {{{{The robflat-bench authors}}}},
  year = {{2026}},
  version = {{{version}}}{address}
}}"""
_CITATION = re.compile(
    r"(?P<authors>[^:]+): (?P<title>.+?[!?]?)\.? "
    r"(?:arXiv (?P<only>\d{4}\.\d{4,5})(?:, \d{4})?"
    r"|(?P<venue>[^., ]+) (?P<year>(?:19|20)\d\d)"
    r"(?:, arXiv (?P<arxiv>\d{4}\.\d{4,5})|, OpenReview (?P<openreview>[\w-]+))?)"
)
"""A citation that a plugin wrote itself: `Authors: Title. Venue Year, arXiv ID`."""


def benchmark(address: str = "") -> str:
    """The entry of the benchmark. address: of the board, if it is known."""
    return BENCHMARK.format(version=__version__, address=address and f",\n  url = {{{address}}}")


def entries(address: str = "") -> list[tuple[str, str]]:
    """Title and BibTeX entry: the benchmark, and the paper."""
    return [("The benchmark", benchmark(address)), ("The paper that it tests", entry(WORKS["stutz2021relating"]))]


def bibtex(citation: str) -> tuple[str, ...]:
    """The entries of the works that a component cites; none for a text that has another form."""
    known = {work.citation: work for work in WORKS.values()}
    works = (known.get(text) or _parsed(text) for text in citation.split("; "))
    return tuple(entry(work) for work in works if work)


def entry(work: Work) -> str:
    """The BibTeX entry of a work: complete author list, title, year, place and address."""
    kind = "inproceedings" if work.venue else "article" if work.journal else "misc"
    arxiv, name = work.arxiv, VENUES.get(work.venue)
    rows = {
        "title": f"{{{work.title}}}",
        "author": " and ".join(work.authors),
        "year": work.year,
        "booktitle": f"{name} ({work.venue})" if name else work.venue,
        "journal": work.journal,
        "pages": work.pages,
        "eprint": arxiv,
        "archivePrefix": "arXiv" if arxiv else "",
        "doi": work.doi,
        "url": f"https://openreview.net/forum?id={work.openreview}" if work.openreview else "",
    }
    lines = ",\n".join(f"  {key} = {{{value}}}" for key, value in rows.items() if value)
    return f"@{kind}{{{work.key},\n{lines}\n}}"


def _parsed(text: str) -> Work | None:
    """The work of a citation that `works.toml` does not have; its authors are those that the citation names."""
    match = _CITATION.fullmatch(text.strip().rstrip("."))
    if match is None:
        return None
    found = {key: re.sub(r"[{}\\@]", "", value or "").strip() for key, value in match.groupdict().items()}
    arxiv = found["only"] or found["arxiv"]
    year = int(found["year"] or f"20{arxiv[:2]}")
    authors = tuple(found["authors"].replace(" et al.", ", others").split(", "))
    key = re.sub(r"[^a-z0-9]", "", f"{authors[0].split()[-1]}{year}{found['title'].split()[0]}".lower())
    places = {name: found[name] for name in ("venue", "openreview")}
    return Work(key, authors, found["title"], year, arxiv=arxiv, **places)
