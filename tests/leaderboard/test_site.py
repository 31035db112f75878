"""The site as files: complete, well formed, self-contained, the same bytes on every machine, safe from hostile text."""

import csv
import hashlib
import io
import json
import os
import posixpath
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

import pytest
from helpers import board_fixture

from robflat_bench.leaderboard.headline import headline, limits
from robflat_bench.leaderboard.links import Links
from robflat_bench.leaderboard.model import Leaderboard
from robflat_bench.leaderboard.site import words
from robflat_bench.leaderboard.site.cards import CardParameter
from robflat_bench.leaderboard.site.pages import render_site

VOID = {"meta", "link", "input", "img", "br", "hr", "wbr"}
BOARD = "digits-linf-1.0"
ATTACK = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}&amp;\u202e\x0b"
SEEN = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}"


class Page(HTMLParser):
    """A page as a browser parses it; fails where it is not well formed."""

    def __init__(self, content: bytes) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(content.decode())
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in <{tag}>"
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in ("path", "circle", "rect"), f"<{tag}/>"
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)

    def attributes(self, name: str) -> list[str]:
        return [attributes[name] for _, attributes in self.tags if name in attributes]


@pytest.fixture(scope="module")
def made():
    return board_fixture.make()


@pytest.fixture(scope="module")
def files(made):
    return render_site(*made)


@pytest.fixture(scope="module")
def pages(files):
    return {path: Page(content) for path, content in files.items() if path.endswith(".html")}


@pytest.fixture(scope="module")
def hostile():
    return render_site(*board_fixture.make(hostile=ATTACK))


def test_every_row_run_and_page_has_its_files(made, files):
    leaderboard, sources = made
    rows = leaderboard.boards[0].rows
    expected = {"index.html", "feed.xml", *(f"{part}{BOARD}/index.html" for part in ("", "protocol/", "pictures/"))}
    expected |= {
        "rules/index.html",
        "submit/index.html",
        "changes/index.html",
        "data/index.html",
        "data/board.json",
        f"data/{BOARD}.csv",
    }
    expected |= {f"m/{BOARD}/{row.id}/index.html" for row in rows} | {f"badge/{BOARD}/{row.id}.svg" for row in rows}
    expected |= {f"r/{key}/{name}" for key in sources.records for name in ("index.html", "record.json")}
    expected |= {"data/board.rows.csv", "data/board.rows.parquet", "data/croissant.json"}
    expected |= {f"compare/{BOARD}/{name}" for name in ("index.html", "images.png")}
    expected |= {"static/site.css", "static/site.js", "static/compare.js", "static/icon.svg"}
    assert set(files) == expected


def test_pages_are_well_formed_with_unique_ids(pages):
    for path, page in pages.items():
        ids = page.attributes("id")
        assert len(ids) == len({*ids}), path
        named = [name for key in ("aria-labelledby", "for") for value in page.attributes(key) for name in value.split()]
        assert {*named} <= {*ids}, path
        assert [tag for tag, _ in page.tags].count("h1") == 1, path


def test_every_link_leads_somewhere(files, pages):
    for path, page in pages.items():
        for target in page.attributes("href") + page.attributes("src"):
            url = urlsplit(target)
            if url.scheme:
                continue
            found = posixpath.normpath(posixpath.join(posixpath.dirname(path), unquote(url.path))) if url.path else path
            assert found in files, f"{path} -> {target}"
            assert not target.endswith("/"), "a folder does not open from a disk"
            if url.fragment:
                assert url.fragment in pages[found].attributes("id"), f"{path} -> {target}"


def test_nothing_is_fetched_from_elsewhere(files, pages):
    for path, page in pages.items():
        for tag, attributes in page.tags:
            absolute = {key for key, value in attributes.items() if "://" in value or value.startswith("//")}
            assert not absolute or (tag == "a" and absolute == {"href"} and "external" in attributes["rel"]), path
            assert not {key for key in attributes if key.startswith("on") or key == "style"}, path
    scripts = files["static/site.js"] + files["static/compare.js"].replace(b"http://www.w3.org/2000/svg", b"")
    assert b"://" not in files["static/site.css"] + scripts
    assert b"url(" not in files["static/site.css"]
    assert b"@import" not in files["static/site.css"]


def test_every_page_of_forty_methods_with_its_assets_is_under_300_kilobytes():
    files = render_site(*board_fixture.make(methods=40))
    shared = sum(len(files[f"static/{name}"]) for name in ("site.css", "site.js", "compare.js", "icon.svg"))
    for path, content in files.items():
        if path.endswith(".html"):
            assert len(content) + shared < 300_000, path


def test_rows_without_a_rank_come_last_and_show_no_rank(files, pages):
    html = files[f"{BOARD}/index.html"].decode()
    ranked, unranked = html.split('<tbody class="unranked">')
    assert "not ranked" not in ranked
    for label in board_fixture.SINGLE:
        assert f">{label.upper()}</a>" in unranked.split("</table>")[0]
        assert "not ranked" in files[f"badge/{BOARD}/{label}.svg"].decode()
    assert "one seed only" in unranked


def test_references_stand_apart_and_withdrawn_runs_keep_their_reason(files):
    table, rest = files[f"{BOARD}/index.html"].decode().split('<h2 id="flatness">')
    assert "WRN-34-10" not in table
    assert "WRN-34-10" in rest
    assert "trained on held-out images by mistake" in rest


def test_a_withdrawn_run_is_named_by_its_key_beside_the_seeds_that_count(made, files, pages):
    (gone,) = made[0].withdrawn
    page = files[f"m/{BOARD}/at/index.html"].decode()
    assert f'r/{gone.key}/index.html">Run {gone.key}</a>, seed 9, retracted: ' in page
    assert "Other runs of this method, which count no more" in pages[f"m/{BOARD}/at/index.html"].text


def test_a_runs_page_begins_with_the_checkpoint_that_is_ranked(made, pages):
    text = pages[f"r/{made[0].boards[0].rows[0].runs[0].key}/index.html"].text
    assert text.index("Last checkpoint, which the board ranks") < text.index("Best checkpoint, epoch")


def test_compare_in_the_navigation_stays_on_the_board(made):
    leaderboard, sources = made
    (board,) = leaderboard.boards
    other = board.model_copy(update={"id": "other", "rows": ()})
    two = replace(sources, comparisons={"other": sources.comparisons[board.id], **sources.comparisons})
    page = render_site(leaderboard.model_copy(update={"boards": (other, board)}), two)[f"{BOARD}/index.html"]
    assert f'href="../compare/{BOARD}/index.html">Compare</a>' in page.decode()


def test_pages_show_the_numbers_of_the_board(made, pages):
    row = made[0].boards[0].rows[0]
    value = row.values["last"]["robust_error"]
    shown = words.spread(value, "fraction")
    for path in (f"{BOARD}/index.html", "index.html"):
        assert shown in pages[path].text
    text = pages[f"m/{BOARD}/{row.id}/index.html"].text
    assert words.interval(value.low, value.high, "fraction") in text
    assert f"rank 1 ({words.rank_interval(row.places['robust_error'])})" in text


def test_the_first_page_says_the_headline_then_shows_the_boards_then_the_claims(made, pages):
    text = pages["index.html"].text
    board = made[0].boards[0]
    assert text.index(headline(board)) < text.index(limits(board)) < text.index("Lowest robust error")
    for one in board.claims:
        assert text.index("Lowest robust error") < text.index(one.evidence)
        assert one.rule in text
        assert one.sentence not in text, "the verdict has a column of its own"
    assert "Not testable here: C2" in text
    assert "A claim of several numbers is contradicted if one of them is, supported if all are" in text
    (board,) = made[0].boards
    untested = board.model_copy(update={"claims": board.claims[1:]})
    files = render_site(made[0].model_copy(update={"boards": (untested,)}), made[1])
    assert "No claim can be tested here yet." in Page(files["index.html"]).text


def test_a_method_card_says_what_each_parameter_means(made):
    leaderboard, sources = made
    row = leaderboard.boards[0].rows[0]
    meaning = "Weight of the divergence."
    part = sources.cards[row.method][0]._replace(parameters=(CardParameter("beta", "6.0", "6.0", meaning),))
    files = render_site(leaderboard, replace(sources, cards={row.method: (part,)}))
    assert meaning in Page(files[f"m/{BOARD}/{row.id}/index.html"]).text


def test_a_method_page_has_the_bibtex_of_each_paper_once(made):
    leaderboard, sources = made
    row = leaderboard.boards[0].rows[0]
    card = sources.cards[row.method]
    files = render_site(leaderboard, replace(sources, cards={row.method: (*card, *card)}))
    text = Page(files[f"m/{BOARD}/{row.id}/index.html"]).text
    assert [text.count(entry) for part in card for entry in part.bibtex] == [1, 1]


def test_every_figure_has_a_title_and_a_description(pages):
    for path, page in pages.items():
        drawn = [attributes for tag, attributes in page.tags if tag == "svg" and "role" in attributes]
        figures_ = [attributes for tag, attributes in page.tags if tag == "figure"]
        chosen = 5 * ("central" in [attributes.get("class") for attributes in figures_])  # one drawing of six is shown
        assert len(drawn) == len(figures_) + chosen, path
        names = page.attributes("id")
        assert all(name in names for attributes in drawn for name in attributes["aria-labelledby"].split())
    for tag, attributes in pages[f"{BOARD}/index.html"].tags:
        assert tag != "svg" or "role" in attributes or attributes.get("aria-hidden") == "true"


# ---------------------------------------------------------------------------------------------------------
# Hostile text
# ---------------------------------------------------------------------------------------------------------


def test_hostile_text_is_shown_as_text(hostile):
    read = 0
    for path, content in hostile.items():
        if not path.endswith(".html"):
            continue
        page = Page(content)
        scripts = [attributes for tag, attributes in page.tags if tag == "script"]
        files = {attributes["src"].rpartition("/")[2] for attributes in scripts if "src" in attributes}
        assert files <= {"site.js", "compare.js"}, path
        assert all(attributes["type"] == "application/json" for attributes in scripts if "src" not in attributes), path
        assert all("badge/" in attributes["src"] for tag, attributes in page.tags if tag == "img"), path
        for tag, attributes in page.tags:
            assert not {key for key in attributes if key.startswith("on") or key == "style"}, path
            holders = {key for key, value in attributes.items() if "alert(" in value}
            assert holders <= {"content", "alt", "aria-label", "data-name", "data-full", "data-label", "data-parts"}, (
                path,
                tag,
                holders,
            )
        assert "49" not in page.text.partition("{{ 7 * 7 }}")[0][-20:]
        assert not {"\u202e", "\x0b"} & {*content.decode()}, path
        read += SEEN in page.text
    assert read > 50


def test_hostile_text_does_not_break_data(hostile):
    for path, content in hostile.items():
        if path.endswith((".svg", ".xml")):
            assert "script" not in {
                element.tag.rpartition("}")[2] for element in ElementTree.fromstring(content).iter()
            }
    assert Leaderboard.model_validate_json(hostile["data/board.json"]).boards[0].summary == ATTACK


@pytest.mark.parametrize("link", ["javascript:alert(1)", "data:text/html,x", 'https://x.org/" onmouseover="alert(1)'])
def test_a_source_is_a_link_only_where_it_is_one(link):
    leaderboard, sources = board_fixture.make(hostile=link, methods=2)
    page = Page(render_site(leaderboard, sources)[f"{BOARD}/index.html"])
    assert {urlsplit(target).scheme for target in page.attributes("href")} <= {"", "https"}
    assert not page.attributes("onmouseover")


def test_markdown_with_html_pictures_or_scripts_is_shown_as_text(made):
    leaderboard, sources = made
    text = "<b>x</b> ![p](https://x.org/p.png) [a](javascript:alert(1)) [b](https://x.org) [c](../changes/index.html)"
    page = Page(render_site(leaderboard, replace(sources, pages={"rules": f"# R\n\n{text}"}))["rules/index.html"])
    inside = page.tags[[tag for tag, _ in page.tags].index("main") :]
    assert not {"b", "img"} & {tag for tag, _ in inside}
    links = [attributes for tag, attributes in inside if tag == "a"]
    assert not [link for link in links if "javascript" in link["href"]]
    assert {link.get("rel") for link in links if "://" in link["href"]} == {"external noopener"}


@pytest.mark.parametrize("name", ["../x", "a/b", "A", "..", ".", "", "a b", "a\n", "é", "x" * 101])
def test_a_name_that_is_no_slug_is_refused(made, name):
    leaderboard, sources = made
    (board,) = leaderboard.boards
    row = board.rows[0]
    with pytest.raises(ValueError, match="no part of an address"):
        render_site(leaderboard.model_copy(update={"boards": (board.model_copy(update={"id": name}),)}), sources)
    rows = (row.model_copy(update={"id": name}),)
    with pytest.raises(ValueError, match="no part of an address"):
        render_site(leaderboard.model_copy(update={"boards": (board.model_copy(update={"rows": rows}),)}), sources)
    with pytest.raises(ValueError, match="no part of an address"):
        render_site(leaderboard, replace(sources, pages={name: "x"}))


def test_two_pages_of_one_path_are_refused(made):
    leaderboard, sources = made
    with pytest.raises(ValueError, match=r"two pages want the path changes/index\.html"):
        render_site(leaderboard, replace(sources, pages={"changes": "x"}))


def test_a_run_without_its_record_is_refused(made):
    leaderboard, sources = made
    with pytest.raises(ValueError, match="there is no record of it"):
        render_site(leaderboard, replace(sources, records={}))


# ---------------------------------------------------------------------------------------------------------
# Data, feed, badge
# ---------------------------------------------------------------------------------------------------------


def test_json_and_csv_hold_the_board(made, files):
    leaderboard, sources = made
    assert Leaderboard.model_validate_json(files["data/board.json"]) == leaderboard
    lines = [*csv.DictReader(io.StringIO(files[f"data/{BOARD}.csv"].decode()))]
    for row, line in zip(leaderboard.boards[0].rows, lines, strict=True):
        assert line["label"] == row.label
        assert float(line["last:robust_error:mean"]) == row.values["last"]["robust_error"].mean
        assert line["rank:robust_error:rank"] == ("" if row.unranked else str(row.places["robust_error"].rank))
    key, record = next(iter(sources.records.items()))
    assert json.loads(files[f"r/{key}/record.json"]) == record.model_dump(mode="json")


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1", "\n=1"])
def test_no_cell_is_a_formula(text):
    files = render_site(*board_fixture.make(hostile=text, methods=2))
    content = files[f"data/{BOARD}.csv"].decode()
    assert f"'{text.strip()}" in next(csv.DictReader(io.StringIO(content))).values()
    for cell in content.replace("\n", ",").split(","):
        assert cell[:1] not in ("=", "+", "@", "\t", "\r")


def test_the_feed_needs_no_address(made, files):
    atom = "{http://www.w3.org/2005/Atom}"
    feed = ElementTree.fromstring(files["feed.xml"])
    assert feed.findtext(f"{atom}updated") == "2026-11-23T00:00:00Z"
    ids = [entry.findtext(f"{atom}id") for entry in feed.iter(f"{atom}entry")]
    assert len({*ids}) == 2
    assert all(name.startswith("tag:robflat-bench,2026:changes/2026-11-2") for name in ids)
    leaderboard, sources = made
    based = render_site(leaderboard, replace(sources, links=Links(site="https://example.org/b")))["feed.xml"]
    assert ElementTree.fromstring(based).get("{http://www.w3.org/XML/1998/namespace}base") == "https://example.org/b/"


def test_a_known_address_stands_where_it_is_pasted_from(made, files):
    leaderboard, sources = made
    based = render_site(leaderboard, replace(sources, links=Links(site="https://example.org/b")))
    (method, *_) = (path for path in files if path.startswith(f"m/{BOARD}/"))
    assert "(ADDRESS-OF-THIS-SITE/badge/" in files[method].decode()
    assert "(https://example.org/b/badge/" in based[method].decode()
    assert "url = {https://example.org/b/}" in based["data/index.html"].decode()
    assert json.loads(based["data/croissant.json"])["url"] == "https://example.org/b/"


def test_every_page_names_the_commit_it_was_built_from(made, files):
    commit = "0123456789abcdef0123456789abcdef01234567"
    named = render_site(made[0], replace(made[1], commit=commit))
    for path, content in named.items():
        if path.endswith(".html"):
            assert f"commit {commit[:12]}, board data" in content.decode(), path
    assert commit in named["data/index.html"].decode()
    assert not re.search("commit[, ]", files["data/index.html"].decode())


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("epsilon", 8 / 255, "8/255"),
        ("attack_step", 2 / 255, "2/255"),
        ("memory_bytes", 25276502016, "25.3 GB"),
        ("memory_bytes", "much", "much"),
        ("epsilon", float("nan"), "nan"),
        ("epsilon", 10**400, str(10**400)),
        ("epsilon", [0.1, "x"], "0.1, x"),
    ],
)
def test_a_leaf_is_written_in_its_unit_and_a_strangers_as_it_is(key, value, text):
    assert dict(words.leaves({"a": {key: value}})) == {f"a.{key}": text}


def test_a_protocols_keys_break_after_their_dots_only(files):
    page = files[f"protocol/{BOARD}/index.html"].decode()
    assert '<th scope="row">threat.<wbr>epsilon</th>' in page
    assert "&lt;wbr" not in page


def test_pictures_name_the_shapes_they_draw(made, files):
    page = files[f"pictures/{BOARD}/index.html"].decode()
    (costs,) = re.findall(r'<h2 id="costs">.*?</section>', page, re.DOTALL)
    drawn = set(re.findall(r'class="(?:point|hollow) (f\d)"', costs.split('<ul class="legend">')[0]))
    named = set(re.findall(r'class="point (f\d)"', costs.split('<ul class="legend">')[1]))
    assert drawn == named


def test_an_empty_leaderboard_is_a_site(made):
    files = render_site(Leaderboard(boards=()), replace(made[1], records={}))
    assert "None yet" in files["changes/index.html"].decode()
    ElementTree.fromstring(files["feed.xml"])


def test_a_board_without_ranks_or_rows_is_a_board(made):
    leaderboard, sources = made
    (board,) = leaderboard.boards
    lone = tuple(row for row in board.rows if row.unranked)[:1]
    for rows in ((), lone):
        bare = board.model_copy(update={"rows": rows, "correlations": (), "claims": ()})
        files = render_site(leaderboard.model_copy(update={"boards": (bare,)}), replace(sources, trainings=()))
        page = Page(files[f"{BOARD}/index.html"])
        assert f"0 ranked of {len(rows)}" in page.text
        assert "Ranks and their intervals" not in page.text
        assert "claims on" not in Page(files["index.html"]).text


# ---------------------------------------------------------------------------------------------------------
# The same bytes everywhere
# ---------------------------------------------------------------------------------------------------------

BUILD = """
import hashlib, json, sys
from helpers import board_fixture
from robflat_bench.leaderboard.site.pages import render_site
files = render_site(*board_fixture.make(methods=14))
digests = {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}
heavy = [name for name in ("torch", "matplotlib", "scipy", "timm") if name in sys.modules]
print(json.dumps([digests, heavy]))
"""


def build(child_environment, folder, **environment):
    done = subprocess.run(
        [sys.executable, "-c", BUILD],
        env={**child_environment(board_fixture.FIGURES.parent.parent / "tests"), **environment},
        cwd=folder,
        capture_output=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_a_rebuild_is_byte_identical_and_light(files, child_environment, tmp_path):
    digests = {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}
    for seed, zone in (("1", "Pacific/Kiritimati"), ("2", "America/Los_Angeles")):
        found, heavy = build(child_environment, tmp_path, PYTHONHASHSEED=seed, TZ=zone, LC_ALL="C")
        assert found == digests
        assert heavy == []


def test_the_site_contains_no_path_of_this_machine(files):
    for place in (os.getcwd(), str(board_fixture.FIGURES.parent.parent), os.path.expanduser("~/")):
        assert not [path for path, content in files.items() if place.encode() in content and len(place) > 3]
