"""Citations and their BibTeX: complete for every component that cites a paper."""

import re

import pytest
from helpers import board_fixture

from robflat_bench.core.works import WORKS, cite
from robflat_bench.leaderboard.site import cards
from robflat_bench.leaderboard.site import cite as site_cite

KINDS = ("method", "modifier", "attack", "measure")


def parse(text):
    """Type, key and fields of one BibTeX entry; AssertionError where braces or the form of a field are wrong."""
    head = re.match(r"@(\w+)\{([\w-]+),\n", text)
    assert head, text
    fields, at = {}, head.end()
    while field := re.compile(r" *(\w+) = \{").match(text, at):
        depth, end = 1, field.end()
        while depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        assert field[1] not in fields
        fields[field[1]] = text[field.end() : end - 1]
        at = re.compile(r",?\n").match(text, end).end()
    assert text[at:] == "}", text[at:]
    return head[1], head[2], fields


def citing():
    registry = board_fixture.registry()
    infos = [registry.get(kind, name).info for kind in KINDS for name in registry.names(kind)]
    return [info for info in infos if info.citation]


@pytest.mark.parametrize("info", citing(), ids=lambda info: f"{info.kind}-{info.name}")
def test_what_cites_papers_gives_a_complete_entry_for_each(info):
    entries = site_cite.bibtex(info.citation)
    assert len(entries) == len(info.citation.split("; "))
    for entry in entries:
        kind, key, fields = parse(entry)
        authors = fields["author"].split(" and ")
        assert "et al" not in entry
        assert "others" not in authors
        assert all(re.fullmatch(r"[^,]+, [^,]+", author) for author in authors), authors
        assert fields["title"].startswith("{")
        assert len(fields["title"].split()) > 1
        assert re.fullmatch(r"(19|20)\d\d", fields["year"])
        assert fields["year"] in key
        assert fields.keys() & {"eprint", "doi", "url"}
        assert fields.keys() & {"booktitle", "journal"} or kind == "misc"


def test_every_work_is_cited_and_its_key_begins_with_first_author_and_year():
    cited = {text for info in citing() for text in info.citation.split("; ")}
    assert {work.citation for work in WORKS.values()} == cited
    for work in WORKS.values():
        surname = re.sub(r"[^a-z]", "", work.authors[0].partition(",")[0].lower())
        assert work.key.startswith(f"{surname}{work.year}")
        assert not set("{}\\%&#@$") & set("".join([work.title, *work.authors]))


def test_an_entry_names_authors_that_the_citation_shortens():
    citation = cite("zhang2019theoretically")
    assert citation == (
        "Zhang et al.: Theoretically principled trade-off between robustness and accuracy. ICML 2019, arXiv 1901.08573"
    )
    assert site_cite.bibtex(citation) == (
        "@inproceedings{zhang2019theoretically,\n"
        "  title = {{Theoretically principled trade-off between robustness and accuracy}},\n"
        "  author = {Zhang, Hongyang and Yu, Yaodong and Jiao, Jiantao and Xing, Eric P. and El Ghaoui, Laurent and "
        "Jordan, Michael I.},\n"
        "  year = {2019},\n  booktitle = {International Conference on Machine Learning (ICML)},\n"
        "  eprint = {1901.08573},\n  archivePrefix = {arXiv}\n}",
    )


def test_citations_of_two_papers_a_preprint_and_three_authors():
    assert cite("hochreiter1997flat", "li2018visualizing") == (
        "Hochreiter, Schmidhuber: Flat minima. Neural Computation 1997, doi 10.1162/neco.1997.9.1.1; "
        "Li et al.: Visualizing the loss landscape of neural nets. NeurIPS 2018, arXiv 1712.09913"
    )
    assert cite("shoham2025flatness") == "Shoham, Mor-Yosef, Avron: Flatness after all? arXiv 2506.17809, 2025"
    first, second = map(parse, site_cite.bibtex(cite("hochreiter1997flat", "li2018visualizing")))
    assert first[0] == "article"
    assert first[2]["journal"] == "Neural Computation"
    assert first[2]["doi"]
    assert second[0] == "inproceedings"
    assert second[2]["eprint"] == "1712.09913"


@pytest.mark.parametrize(
    ("citation", "expected"),
    [
        (
            "Doe et al.: A {new} title. ICLR 2027, OpenReview abc-DEF_123",
            ("inproceedings", "doe2027a", "Doe and others"),
        ),
        ("Doe, Roe: New. arXiv 2701.00001", ("misc", "doe2027new", "Doe and Roe")),
    ],
)
def test_a_citation_of_a_plugin_gives_what_it_names(citation, expected):
    (entry,) = site_cite.bibtex(citation)
    kind, key, fields = parse(entry)
    assert (kind, key, fields["author"]) == expected
    assert site_cite.bibtex("see the readme") == ()


def test_the_paper_of_the_claims_is_one_of_the_works():
    (_, benchmark), (_, paper) = site_cite.entries()
    assert parse(benchmark)[2]["title"].startswith("robflat-bench")
    assert parse(paper)[2]["author"] == "Stutz, David and Hein, Matthias and Schiele, Bernt"
    assert parse(paper)[2]["pages"] == "7807--7817"


def test_a_card_has_the_entries_of_each_part():
    card = cards.method_card(board_fixture.registry(), "trades+awp")
    assert [[parse(entry)[1] for entry in part.bibtex] for part in card] == [
        ["zhang2019theoretically"],
        ["wu2020adversarial"],
    ]
