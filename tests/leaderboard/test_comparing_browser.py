"""The Compare page in a browser: any pair, its images, its address, and what is there without scripts."""

import pytest
from helpers import board_fixture

from robflat_bench.analysis.statistics import compare_methods
from robflat_bench.leaderboard.site import words
from robflat_bench.leaderboard.site.pages import comparison_page

COMPARE = "compare/digits-linf-1.0/index.html"


def cells(page, id):
    rows = page.locator(f"section:has(#{id}) tbody tr")
    return rows.evaluate_all("rows => rows.map(row => [...row.cells].map(cell => cell.textContent))")


def test_two_methods_are_compared_and_stand_in_the_address(visit):
    leaderboard, sources = board_fixture.make()
    wrong = sources.comparisons[leaderboard.boards[0].id].wrong
    page = visit(f"{COMPARE}?a=trades&b=mart")
    assert page.locator("#said").text_content().startswith("TRADES against MART, 3 and 3 seeds: ")
    difference = wrong["trades"].mean() - wrong["mart"].mean()
    assert cells(page, "differences")[0][1] == words.format_value(difference, "fraction")
    for k, (seeds, only_a, only_b, p) in enumerate(cells(page, "networks")):
        test = compare_methods(wrong["trades"][k : k + 1], wrong["mart"][k : k + 1]).networks[0]
        assert (seeds, only_a, only_b) == (f"{k + 1} and {k + 1}", str(test.only_a), str(test.only_b))
        assert float(p) == pytest.approx(test.p, rel=0.06)
    page.get_by_role("button", name="Swap").click()
    assert page.url.endswith("?a=mart&b=trades")
    assert cells(page, "differences")[0][1] == words.format_value(-difference, "fraction")
    page.locator("[name=b]").select_option("mart")
    assert page.locator("#said").text_content() == "Choose two different methods."
    page.locator("[name=a]").select_option("score")
    assert page.locator("#said").text_content().endswith("one seed says nothing of a method.")
    assert {line[2] for line in cells(page, "differences")} == {"one seed"}


def test_every_test_image_is_in_one_of_four_groups(visit):
    leaderboard, sources = board_fixture.make()
    a, b = (sources.comparisons[leaderboard.boards[0].id].wrong[name][1] for name in ("trades", "mart"))
    page = visit(f"{COMPARE}?a=trades&b=mart")
    page.get_by_label("Which seeds").select_option("1")
    titles = page.locator(".outcomes h3").all_text_contents()
    counts = [(~a & ~b).sum(), (a & ~b).sum(), (b & ~a).sum(), (a & b).sum()]
    named = ["Both right", "Only TRADES wrong", "Only MART wrong", "Both wrong"]
    assert titles == [f"{name}: {count}" for name, count in zip(named, counts, strict=True)]
    assert page.locator(".cells span").count() == 250
    only = page.locator(".o1 span").first
    assert only.get_attribute("title") == f"test image {(a & ~b).argmax()}, class {(a & ~b).argmax() % 10}"
    page.locator(".outcomes summary").nth(1).click()
    assert page.locator(".outcomes details[open] p").text_content().split(", ")[0] == str((a & ~b).argmax())


def test_without_scripts_every_method_stands_against_adversarial_training(visit):
    page = visit(COMPARE, java_script_enabled=False)
    assert page.locator("section:has(#against) tbody tr:visible").count() == 14
    assert not page.locator("#pair").is_visible()
    assert not page.locator("#compared").is_visible()
    assert page.locator("noscript").is_visible()


def test_one_file_compares_without_a_server(visit, tmp_path):
    leaderboard, sources = board_fixture.make()
    (board,) = leaderboard.boards
    (tmp_path / "c.html").write_bytes(comparison_page(board, board.rows[0], sources))
    page = visit("c.html", base=f"{tmp_path.as_uri()}/")
    assert len(cells(page, "differences")) == 5
    assert page.locator(".cells span").count() == 250
    assert page.evaluate("getComputedStyle(document.querySelector('.cells')).display") == "flex"
