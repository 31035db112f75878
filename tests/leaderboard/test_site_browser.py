"""The site in a browser: keyboard, address, themes, phones, no script at all, and nothing from elsewhere."""

import pytest
from axe_playwright_python import sync_playwright as axe

BOARD = "digits-linf-1.0/index.html"
COMPARE = f"compare/{BOARD}"


def shown(page):
    return page.locator("#board tbody tr:visible th").evaluate_all("found => found.map(f => f.firstChild.textContent)")


def column(page, title):
    return page.locator("#board thead th", has_text=title).first


def test_the_table_is_sorted_by_keyboard(visit):
    page = visit(BOARD)
    built = shown(page)
    head = column(page, "Clean error")
    head.locator("button").focus()
    page.keyboard.press("Enter")
    rows = shown(page)
    cells = page.locator("#board tbody").first.locator("tr td:nth-child(4)")
    values = cells.evaluate_all("cells => cells.map(cell => parseFloat(cell.textContent))")
    assert values == sorted(values)
    assert rows != built
    assert set(rows[-2:]) == {"SCORE", "GAIRAT"}
    assert page.locator("th[aria-sort]").count() == 1
    assert head.get_attribute("aria-sort") == "ascending"
    assert page.locator("#said").text_content() == "Sorted by Clean error, ascending."
    page.keyboard.press("Space")
    assert head.get_attribute("aria-sort") == "descending"
    assert set(shown(page)[-2:]) == {"SCORE", "GAIRAT"}, "what is not ranked stays last in every order"
    assert page.url.endswith("?sort=clean-error&down=1")


def test_a_column_with_gaps_keeps_them_last(visit):
    page = visit(f"{BOARD}?more=1")
    head = column(page, "Largest Hessian")
    for _ in range(2):
        head.locator("button").click()
        cells = (
            page.locator("#board tbody")
            .first.locator("tr")
            .evaluate_all("rows => rows.map(r => [...r.cells].find(c => c.classList.contains('g-more')).textContent)")
        )
        gaps = [cell == "\u2013" for cell in cells]
        assert gaps == sorted(gaps)


def test_filters_count_and_stand_in_the_address(visit):
    page = visit(BOARD)
    assert page.locator("#count").text_content() == "14 of 14 methods"
    page.get_by_label("Search").fill("awp")
    assert shown(page) == ["TRADES + AWP", "AT + AWP"]
    page.get_by_label("Search").blur()
    page.get_by_label("Evidence").select_option("reproduced")
    assert page.locator("#count").text_content() == f"{len(shown(page))} of 14 methods"
    assert page.url.endswith("?q=awp&tier=reproduced")
    page.get_by_label("Search").fill("")
    page.get_by_label("Evidence").select_option("")
    page.get_by_label("Ranked only").check()
    assert "SCORE" not in shown(page)
    page.get_by_label("Ranked only").uncheck()
    page.locator("select[name=extra]").select_option("yes")
    assert shown(page) == ["AT + unlabeled"]


def test_an_address_can_be_shared_and_back_goes_back(visit):
    page = visit(f"{BOARD}?q=trades&sort=clean-error&down=1&budget=1&attacks=1")
    assert sorted(shown(page)) == ["TRADES", "TRADES", "TRADES + AWP"]
    assert column(page, "Clean error").get_attribute("aria-sort") == "descending"
    assert column(page, "Forward passes").is_visible()
    assert column(page, "PGD-20").is_visible()
    assert not column(page, "Largest").is_visible()
    before = shown(page)
    column(page, "Rank").locator("button").click()
    page.get_by_label("Search").fill("hat")
    page.get_by_label("Search").blur()
    assert shown(page) == ["HAT"]
    page.go_back()
    page.go_back()
    assert shown(page) == before
    assert page.get_by_label("Search").input_value() == "trades"
    page.go_forward()
    assert column(page, "Rank").get_attribute("aria-sort") == "ascending"


def test_an_address_of_nonsense_is_the_board_as_built(visit):
    page = visit(f"{BOARD}?sort=%3Cscript%3E&down=7&tier=none&ranked=x&__proto__=1")
    assert len(shown(page)) == 14
    assert column(page, "Rank").get_attribute("aria-sort") == "ascending"


def test_without_scripts_everything_is_there(visit):
    page = visit(BOARD, java_script_enabled=False)
    assert page.locator("#board tbody tr:visible").count() == 14
    assert not page.locator("#filters").is_visible()
    assert page.locator("#board button").count() == 0
    assert not column(page, "Forward passes").is_visible()
    page.get_by_label("Budget").check()
    assert column(page, "Forward passes").is_visible(), "columns are shown and hidden by the style alone"
    assert page.locator(".central .view:visible").count() == 1
    page.get_by_label("Robust error", exact=True).check()
    assert "robust error" in page.locator(".central .view:visible svg title").first.text_content().lower()
    assert page.locator(".central .view:visible .datum").count() == 14


def test_without_scripts_a_picture_has_its_numbers(visit):
    page = visit(f"pictures/{BOARD}", java_script_enabled=False)
    page.locator("figure details summary").first.click()
    assert page.locator("figure details[open] table").first.is_visible()


def test_pages_work_when_opened_from_a_disk(visit, folder):
    page = visit(BOARD, base=f"{folder.as_uri()}/")
    column(page, "Clean error").locator("button").click()
    assert page.locator("th[aria-sort]").count() == 1
    assert page.evaluate("getComputedStyle(document.querySelector('.brand')).textDecorationLine") == "none"
    page.locator("#board a").first.click()
    assert page.locator("h1").text_content()


def every_kind(folder):
    run = sorted((folder / "r").iterdir())[0].name
    protocol, pictures = f"protocol/{BOARD}", f"pictures/{BOARD}"
    method = "m/digits-linf-1.0/fgsm-rs/index.html"
    others = ("rules/index.html", "changes/index.html", "data/index.html")
    return ("index.html", BOARD, COMPARE, method, f"r/{run}/index.html", protocol, pictures, *others)


@pytest.mark.parametrize(
    ("width", "theme"),
    [
        (1280, "light"),
        (390, "dark"),
        pytest.param(1280, "dark", marks=pytest.mark.slow),
        pytest.param(390, "light", marks=pytest.mark.slow),
    ],
)
def test_every_kind_of_page_is_accessible_and_fits(visit, folder, width, theme, tmp_path):
    for path in every_kind(folder):
        page = visit(path, viewport={"width": width, "height": 900}, color_scheme=theme)
        page.evaluate("document.querySelectorAll('details').forEach(found => found.open = true)")
        found = axe.Axe().run(page)
        assert found.violations_count == 0, f"{path}: {found.generate_report()}"
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        page.screenshot(path=tmp_path / f"{path.replace('/', '_')}.png", full_page=True)
        back = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (back == "rgb(255, 255, 255)") == (theme == "light")


def test_the_keyboard_reaches_everything_and_shows_where_it_is(visit):
    page = visit(BOARD)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#main"
    seen = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.name || document.activeElement.tagName"))
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert page.evaluate(outline) != "none"
    assert {"q", "tier", "extra", "ranked", "budget", "BUTTON", "A", "DIV"} <= seen


def test_a_mark_and_its_row_are_lit_together_and_have_a_card(visit):
    page = visit(BOARD)
    assert not page.locator(".card").is_visible()
    mark = page.locator(".view:visible .datum").nth(3)
    mark.focus()
    target = mark.get_attribute("href")
    assert page.locator("#board tr.lit a").get_attribute("href") == target
    assert page.locator(".card a").get_attribute("href") == target
    assert "Robust error" in page.locator(".card").text_content()
    page.locator("#board tbody tr").nth(5).hover()
    assert page.locator("#board tr.lit").count() == 1
    lit = page.locator(".view:visible .datum.lit").get_attribute("href")
    assert lit == page.locator("#board tbody tr").nth(5).locator("a").get_attribute("href") != target


def test_a_finger_sees_the_card_before_it_follows_the_link(visit):
    page = visit("index.html", has_touch=True, viewport={"width": 390, "height": 900})
    page.locator(".view:visible .datum .point").first.tap()
    assert page.url.endswith("index.html")
    assert page.locator(".card").is_visible()
    page.locator(".card a").tap()
    page.wait_for_url("**/m/**")


def test_the_rank_follows_the_column_that_orders_the_table(visit):
    page = visit(BOARD)
    ranks = page.locator("#board tbody").first.locator("td.rank b")
    built = ranks.all_text_contents()
    column(page, "Average-case").locator("button").click()
    assert ranks.all_text_contents() == sorted(built, key=int)
    names = shown(page)
    column(page, "Clean error").locator("button").click()
    after = dict(zip(shown(page), ranks.all_text_contents(), strict=False))
    assert [after[name] for name in names[:3]] != ["1", "2", "3"], (
        "by a column without ranks, it is that of robust error"
    )


def test_the_first_page_needs_no_scrolling_at_1280_by_900(visit):
    page = visit("index.html", viewport={"width": 1280, "height": 900})
    for found in (page.locator("h1"), page.locator(".central .view:visible svg"), page.get_by_text("Cite", exact=True)):
        box = found.first.bounding_box()
        assert box["y"] + box["height"] <= 900


def test_what_is_to_be_copied_is_copied(visit, browser):
    page = visit("data/index.html", permissions=["clipboard-read", "clipboard-write"])
    page.locator(".copied button").first.click()
    page.get_by_text("Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()").startswith("@software{robflatbench,")
