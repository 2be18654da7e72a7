"""The chat page in a real browser: it is clicked and typed into, and what it then shows is read."""

import threading

import numpy as np
import pytest
import torch

from apps.crs.chat import create_server
from apps.crs.policies import AbsGreedy, Threshold
from simulators.crs.catalogue import Catalogue
from simulators.crs.conversation import Conversation, Embeddings, Rules
from simulators.crs.generated import PRESETS, generate
from tests.apps.crs_browser import CHROMIUM, Browser

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
HOSTILE = "<img src=x onerror=document.title='hacked'>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def conversation(catalogue, **rules):
    generator = torch.Generator().manual_seed(0)
    counts = (catalogue.n_users, catalogue.n_items, catalogue.n_attributes)
    points = Embeddings(*(0.4 * torch.randn(n, 8, generator=generator) for n in counts))
    return Conversation(catalogue, points, Rules(**rules))


@pytest.fixture
def page(browser, request):
    """The page of a server with these policies, which was told nothing yet."""
    world, policies = request.param()
    with create_server(world, policies, port=0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        browser.troubles.clear()
        browser.open(server.url)
        yield browser
        browser.call("Page.navigate", url="about:blank")
        server.shutdown()
        thread.join()
    assert browser.troubles == []


def two():
    world = conversation(generate(PRESETS["tiny"], 0))
    return world, {"patient": Threshold(world, 8), "hasty": Threshold(world, 30)}


def one_enumerated():
    world = conversation(generate(PRESETS["tiny"], 0), question="enumerated")
    return world, {"only": Threshold(world, 8)}


def hostile():
    catalogue = Catalogue(
        name=HOSTILE,
        item_names=(HOSTILE, "椅子 🪑"),
        attribute_names=(HOSTILE, "naïve"),
        type_names=(HOSTILE,),
        attribute_type=np.array([0, 0]),
        edges=np.array([(0, 0), (1, 1)]),
        n_users=1,
        interactions={"train": np.array([[0, 0]])},
    )
    world = conversation(catalogue, list_length=2)
    return world, {HOSTILE: Threshold(world, 1), "lists": AbsGreedy(world)}


COLUMN = "document.querySelectorAll('.column')[{}]"


def start(page, text=""):
    page.run("document.getElementById('text').focus()")
    page.type(text)
    page.key("Enter")
    page.until("document.querySelectorAll('.column .reply button').length > 2")


def settled(page):
    page.until("columns.every(column => !column.busy)")


def press(page, column, word):
    """Click the button of this word or the card that has it."""
    found = page.run(
        f"(() => {{ const node = [...{COLUMN.format(column)}.querySelectorAll('button')]"
        f".find(one => one.textContent.includes({word!r})); if (node) node.click(); return Boolean(node); }})()"
    )
    assert found, f"no button {word}: {page.run(COLUMN.format(column) + '.innerText')}"
    settled(page)


def text(page, column, part=""):
    return page.run(f"{COLUMN.format(column)}{f'.querySelector({part!r})' if part else ''}.innerText")


def bubbles(page, column):
    return page.run(f"[...{COLUMN.format(column)}.querySelectorAll('.bubble')].map(node => node.innerText)")


@pytest.mark.parametrize("page", [two], indirect=True)
def test_questions_are_answered_until_an_item_is_chosen(page):
    start(page, "red")
    assert text(page, 0, "h2") == "patient"
    assert bubbles(page, 0)[0] == "colour: red"
    assert bubbles(page, 0)[-1].startswith("Do you want ")
    assert "of 100 left" in text(page, 0, ".count")
    press(page, 0, "No")
    for _ in range(12):
        if page.run("columns[0].state.turn.kind") == "list":
            break
        press(page, 0, "Yes")
    assert bubbles(page, 0)[-1] == "How about one of these?"
    names = page.run(f"[...{COLUMN.format(0)}.querySelectorAll('.card .name')].map(node => node.innerText)")
    assert 0 < len(names) <= 10
    assert "red" in page.run(f"{COLUMN.format(0)}.querySelector('.card .tag.matched').innerText")
    press(page, 0, "Why?")
    assert "The list holds your item with probability" in text(page, 0, ".note")
    press(page, 0, names[0][1:].strip())
    assert bubbles(page, 0)[-1] == f"Found: {names[0].removeprefix('1').strip()}."
    # The dialogue is over, and can still be taken back.
    press(page, 0, "Back")
    assert bubbles(page, 0)[-1] == "How about one of these?"


@pytest.mark.parametrize("page", [two], indirect=True)
def test_the_same_question_is_answered_alike_in_the_other_column(page):
    start(page)
    asked = bubbles(page, 0)[-1]
    assert bubbles(page, 1)[-1] == asked
    press(page, 0, "No")
    page.until("columns[1].state.said.length === 1")
    settled(page)
    assert bubbles(page, 1)[:2] == [asked, "No (as before)"]
    # Back in one column leaves the other alone, and nobody answers for the person there.
    press(page, 1, "Back")
    assert bubbles(page, 1) == [asked]
    assert bubbles(page, 0)[1] == "No"
    press(page, 1, "Yes")
    assert bubbles(page, 1)[1] == "Yes"
    page.run("document.getElementById('reuse').click()")
    before = len(bubbles(page, 1))
    press(page, 0, "Don’t care")
    assert len(bubbles(page, 1)) == before


@pytest.mark.parametrize("page", [two], indirect=True)
def test_by_keyboard_alone(page):
    page.run("document.getElementById('user').value = '7'")
    start(page)
    assert page.run("columns[0].state.user") == 7
    # The focus is on the first answer.
    assert page.run("document.activeElement.innerText") == "Yes"
    for key, said in (("n", "No"), ("?", "I don't care"), ("y", "Yes")):
        count = page.run("columns[0].state.said.length")
        page.key(key)
        page.until(f"columns[0].state.said.length === {count + 1}")
        assert page.run("columns[0].state.said.at(-1).text") == said
    page.key("b")
    page.until("columns[0].state.said.length === 2")
    page.key("w")
    page.until("columns[0].why !== null")
    page.key("l")
    page.until("columns[0].state.turn.kind === 'list'")
    second = page.run("columns[0].state.turn.items[1].name")
    page.key("2")
    page.until("columns[0].state.turn.kind === 'accepted'")
    assert bubbles(page, 0)[-1] == f"Found: {second}."


@pytest.mark.parametrize("page", [two], indirect=True)
def test_what_is_not_understood_is_said_and_what_is_unsure_is_asked(page):
    start(page, "grene")
    assert "By “grene”, do you mean" in text(page, 0, ".note")
    press(page, 0, "colour: green")
    page.until("columns[1].state.accepted.length === 1")
    settled(page)
    for column in (0, 1):
        assert page.run(f"columns[{column}].state.accepted[0].value") == "green"
        assert "By “grene”" not in text(page, column)
    page.run(f"{COLUMN.format(0)}.querySelector('.say input').focus()")
    page.type("xyzzy")
    page.key("Enter")
    page.until(f"{COLUMN.format(0)}.innerText.includes('I know nothing of that name.')")
    # Suggestions complete the last of several words.
    page.run("document.getElementById('text').focus()")
    page.run("document.getElementById('text').value = ''")
    page.type("red, gre")
    assert "red, green" in page.run("[...document.querySelectorAll('#suggestions option')].map(node => node.value)")
    # A server that has forgotten the dialogue says so.
    page.run("columns[0].state.id = 'gone'")
    press(page, 0, "Why?")
    assert "no such dialogue" in text(page, 0, ".note")
    page.troubles[:] = [line for line in page.troubles if "404" not in line]


@pytest.mark.parametrize("page", [one_enumerated], indirect=True)
def test_several_values_are_ticked(page):
    start(page)
    assert page.run("document.querySelectorAll('.column').length") == 1
    assert page.run("document.getElementById('reuse-label').hidden")
    labels = page.run("[...document.querySelectorAll('.choices label')].map(node => node.innerText.trim())")
    assert len(labels) == 5
    press(page, 0, "Choose")
    assert "Choose at least one" in text(page, 0, ".note")
    page.run("document.querySelectorAll('.choices input')[2].click()")
    press(page, 0, "Choose")
    assert page.run("columns[0].state.accepted.map(option => option.value)") == [labels[2]]
    assert bubbles(page, 0)[1] == labels[2]
    assert len(page.run("columns[0].state.rejected")) == 4


@pytest.mark.parametrize("page", [hostile], indirect=True)
def test_names_never_become_markup(page):
    start(page, "naïve")
    press(page, 0, "None of these")
    for column in (0, 1):
        page.until(f"columns[{column}].state.turn.kind === 'relax'")
        press(page, column, "Yes, drop it")
        press(page, column, "Why?")
        assert "椅子 🪑" in text(page, column, ".bubble ol")
        assert text(page, column, ".card .name").endswith(HOSTILE)
    assert page.run("document.querySelectorAll('img, script:not(:only-of-type)').length") == 0
    assert page.run("document.title") == f"{HOSTILE}: {HOSTILE} and lists"


@pytest.mark.parametrize("page", [two], indirect=True)
def test_the_page_fits_a_phone_and_the_dark(page):
    start(page, "red")
    light = page.run("getComputedStyle(document.body).backgroundColor")
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    page.call("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=1, mobile=True)
    assert page.run("getComputedStyle(document.body).backgroundColor") != light
    for word in ("Show a list", "Why?"):
        press(page, 0, word)
        assert page.run("document.documentElement.scrollWidth <= 360")
    page.call("Emulation.setEmulatedMedia", features=[])
    page.call("Emulation.setDeviceMetricsOverride", width=1400, height=900, deviceScaleFactor=1, mobile=False)
