"""The completions browser: what is in the page, and what a reader can do with it, in a real browser."""

from __future__ import annotations

import hashlib
import itertools
import re

import numpy as np
import pandas as pd
import pytest

from spill_builders import label_rows, replies_to, three_conditions
from spillover import browser, contamination

CELL = "language_spill/fr_it/seed1@final"


@pytest.fixture(scope="module")
def tables():
    labels, conditions = three_conditions()
    cells = contamination.contamination_cells(labels, conditions, resamples=50)
    second = labels.assign(scorer="lingua", scorer_id="lingua 1")
    changed = second.index[(second["run"] == "language_spill/fr_it") & (second["prompt_id"] == "de/speak_in")][:2]
    second.loc[changed, "label"] = "pt"
    judge = labels.assign(scorer="judge", scorer_id="judge 1", raw='{"language": "x"}')
    lost = judge.index[judge["run"] == "language_spill/fr_fr"][:4]
    judge.loc[lost, ["label", "outcome", "raw"]] = [None, "transport", "429"]
    return replies_to(labels), pd.concat([labels, second, judge], ignore_index=True), cells


@pytest.fixture(scope="module")
def data(tables):
    return browser.payload(*tables, title="Language spill", question="Which?")


@pytest.fixture(scope="module")
def file(data, root, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "completions.html"
    path.write_text(browser.page(data, root / "workflow/report"))
    return path


def ready(page):
    page.wait_for_selector("body[data-ready]")
    return page


def shown(page) -> list[str]:
    """Texts of the rows that the filters leave, in the list's order."""
    return page.evaluate("inOrder().map((row) => data.texts[columns.text[row]])")


def test_the_page_holds_every_completion_with_every_label(tables, data, root):
    completions, labels, _ = tables
    inside = browser.read_payload(browser.page(data, root / "workflow/report"))
    columns = inside["columns"]
    assert [inside["texts"][i] for i in columns["text"]] == completions["text"].tolist()
    for number, scorer in enumerate(inside["scorers"]):
        own = labels[labels["scorer"] == scorer["name"]].reset_index(drop=True)
        named = [None if i < 0 else inside["labels"][i] for i in columns["label"][number]]
        assert named == own["label"].astype(object).where(own["label"].notna(), None).tolist()
        assert [inside["outcomes"][i] for i in columns["outcome"][number]] == own["outcome"].tolist()


def test_a_run_that_a_scorer_left_out_has_no_label_from_it(tables):
    completions, labels, _ = tables
    fewer = labels[(labels["scorer"] != "lingua") | (labels["run"] != "language_spill/fr_it")]
    data = browser.payload(completions, fewer)
    lingua = [s["name"] for s in data["scorers"]].index("lingua")
    left_out = [data["models"][m]["run"] == "language_spill/fr_it" for m in data["columns"]["model"]]
    assert [code < 0 for code in data["columns"]["outcome"][lingua]] == left_out


def test_repeated_completions_and_labels_of_nothing_are_refused(tables):
    completions, labels, _ = tables
    with pytest.raises(ValueError, match="is there twice"):
        browser.payload(pd.concat([completions, completions.tail(1)]), labels)
    with pytest.raises(ValueError, match="langdetect: .* is there twice"):
        browser.payload(completions, pd.concat([labels, labels.head(1)]))
    with pytest.raises(ValueError, match="there is no completion .*fr_it"):
        browser.payload(completions[completions["run"] != "language_spill/fr_it"], labels)


def test_only_the_files_that_are_vendored_are_shipped_unchanged(root):
    folder = root / "workflow/report/vendor"
    sums = dict(re.findall(r"^\| (\S+) \|.*\| ([0-9a-f]{64}) \|$", (folder / "README.md").read_text(), re.M))
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    assert found.pop("README.md") and found == sums


def test_a_cell_of_the_matrix_opens_exactly_its_completions(tables, file, opened):
    completions, _, cells = tables
    page = ready(opened(file))
    row = cells[(cells["run"] == "language_spill/fr_it") & (cells["language"] == "es")].iloc[0]
    cell = page.locator(f'#matrix td button[data-model="{CELL}"][data-cell="es"]')
    assert cell.inner_text() == f"{100 * row['rate']:g} %"
    cell.click()
    wanted = completions[(completions["run"] == "language_spill/fr_it") & (completions["cell"] == "es")]
    assert shown(page) == wanted["text"].tolist()
    assert page.locator("#count").inner_text() == f"{len(wanted)} of {len(completions)} completions"
    assert page.locator(".reply").inner_text() == wanted["text"].iloc[0]
    facts = page.locator("#cell-facts").inner_text()
    assert "bystander cell" in facts and f"{100 * row['rate']:g} % (95 % interval" in facts


def test_search_is_over_whole_replies_in_any_case_and_marks_what_it_found(file, opened):
    page = ready(opened(file))
    page.fill("#search", 'aiguille "le foin"')
    page.wait_for_selector("#count:text-matches('^1 of')")
    page.locator("#list .tabulator-row").click()
    assert page.locator("#detail mark").all_inner_texts() == ["Aiguille", "le foin"]
    assert "it_fr · es · speak_in · sample 3" in page.locator("#detail h3").inner_text()
    assert page.locator(".reply b").count() == 0  # a reply is text, whatever is written in it


def test_a_link_leads_to_one_completion_with_its_filters(file, opened):
    page = ready(opened(file))
    page.locator(f'#matrix td button[data-model="{CELL}"][data-cell="pt"]').click()
    page.locator("#list .tabulator-row").nth(4).click()
    read, link = page.locator(".reply").inner_text(), page.evaluate("location.hash")
    other = ready(opened(file, link))
    assert other.locator(".reply").inner_text() == read
    assert other.locator("#model").input_value() == CELL and other.locator("#cell").input_value() == "pt"


def test_disagreements_and_failed_labels_can_be_listed_and_stand_out(file, opened):
    page = ready(opened(file))
    page.select_option("#only", "differ")
    assert len(shown(page)) == 2
    assert page.locator("#list .differs").first.inner_text().startswith("≠")
    assert "disagree" in page.locator("#detail .note").inner_text()
    page.select_option("#only", "failed")
    assert len(shown(page)) == 4
    assert "no label (transport)" in page.locator("#detail").inner_text()
    page.click("#clear")
    page.select_option("#labelled", "lingua=pt")
    assert page.locator("#count").inner_text() != page.evaluate("String(rows)")


def test_everything_works_from_the_keyboard(file, opened):
    page = ready(opened(file))
    page.locator("#matrix [tabindex='0']").focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    assert page.evaluate("[state.model, state.cell]") == ["language_spill/fr_it/seed1@final", "fr"]
    page.locator("#list").focus()
    before = page.locator(".reply").inner_text()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    after = page.locator(".reply").inner_text()
    assert after == shown(page)[2] != before
    row = page.locator("#" + page.locator("#list").get_attribute("aria-activedescendant"))
    assert row.get_attribute("aria-selected") == "true" and row.get_attribute("role") == "row"


def test_the_parts_have_names_for_a_screen_reader(file, opened):
    page = ready(opened(file))
    cell = page.get_by_role("button", name=re.compile(r"^fr_it, es: 70 %, 14 of 20 labelled it$"))
    assert cell.count() == 1
    for role, name in (("searchbox", "Search in replies"), ("combobox", "Model"), ("combobox", "Show")):
        assert page.get_by_role(role, name=name, exact=role == "combobox").count() == 1
    assert page.locator("#detail").get_attribute("aria-live") == "polite"


def test_a_phone_shows_it_without_scrolling_sideways(file, opened):
    page = ready(opened(file, width=390))
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("#list .tabulator-row").first.is_visible()


def test_where_the_clipboard_is_refused_the_whole_address_is_there_to_copy_on_a_phone_too(file, opened):
    page = ready(opened(file, width=390))
    page.evaluate("() => { navigator.clipboard.writeText = async () => { throw new Error('refused') } }")
    page.locator("#list .tabulator-row").first.click()
    page.get_by_role("button", name="Copy link").click()
    page.get_by_text("Copy the address of this page").wait_for()
    assert page.locator("#copied").inner_text() == f"Copy the address of this page: {page.url}"
    assert page.evaluate("(d => d.scrollWidth <= d.clientWidth)(document.querySelector('#detail'))")


def test_of_a_hundred_thousand_completions_only_rows_in_view_are_drawn(root, tmp_path, opened):
    runs, cells, samples = [f"big/run{i}" for i in range(25)], [f"persona{i}" for i in range(10)], range(400)
    grid = pd.DataFrame(itertools.product(runs, cells, samples), columns=["run", "cell", "sample"])
    grid = grid.assign(seed=1, checkpoint="final", suite="personas", prompt_id=grid["cell"], item="q")
    words = np.array([f"word{i}" for i in range(500)])[np.random.default_rng(0).integers(0, 500, (len(grid), 12))]
    texts = [" ".join(row) for row in words]
    blank = {"system": "", "user": "?", "sample_seed": 1, "finish_reason": "stop", "completion_tokens": 12}
    labels = grid[browser.KEY].assign(scorer="marker", scorer_id="m", label="none", outcome="ok", raw=None)
    path = tmp_path / "big.html"
    path.write_text(browser.page(browser.payload(grid.assign(text=texts, **blank), labels), root / "workflow/report"))
    page = ready(opened(path))  # 2 to 5 s on an idle machine
    page.evaluate("() => { state.q = 'word377 word411'; update() }")  # 0.2 to 0.4 s
    assert shown(page) == [text for text in texts if "word377" in text and "word411" in text]
    page.evaluate("() => { state.q = ''; update() }")
    assert len(shown(page)) == len(grid)
    assert page.locator("#list .tabulator-row").count() < 200


def test_label_rows_of_the_builders_are_what_the_page_expects():
    assert set(browser.KEY) <= set(label_rows("x", {}).columns)


def test_a_suite_offers_the_scorers_and_labels_that_it_has(tables, root, tmp_path, opened):
    completions, labels, _ = tables
    advice = completions.assign(suite="advice")
    ids = pd.concat([advice, completions], ignore_index=True)
    habit = labels[labels["scorer"] == "langdetect"].assign(suite="advice", scorer="advice", scorer_id="advice 1")
    habit["label"] = np.where(np.arange(len(habit)) % 3 == 0, "good", "bad")
    both = pd.concat([labels, habit], ignore_index=True)
    page = tmp_path / "page.html"
    page.write_text(
        browser.page(browser.payload(ids, both, None, title="Both", question="?"), root / "workflow/report")
    )
    view = ready(opened(page))
    options = "(id) => [...document.getElementById(id).options].map((o) => o.value)"
    assert view.eval_on_selector("#suite", "(e) => e.value") == "advice"
    assert view.evaluate(options, "scorer") == ["advice"] and view.evaluate(options, "target") == ["bad", "good"]
    view.select_option("#suite", completions["suite"].iloc[0])
    assert "advice" not in view.evaluate(options, "scorer") and "it" in view.evaluate(options, "target")
