"""The page in headless Chromium, as a person uses it. Needs chromium and chromedriver, and skips without them."""

import http.client
import json
import shutil
import threading

import pytest

from bertjax.asking.reader import EXAMPLE
from bertjax.asking.server import AskServer

webdriver = pytest.importorskip("selenium.webdriver")

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync --window-size=1200,1000"
)
# Two UTF-16 units and a combining accent before every word that can be the answer, and HTML that must stay text.
TEXT = "\U0001f600\U0001f468\u200d\U0001f33e e\u0301 <b>king</b> of the river"
QUESTION = "who is king"


@pytest.fixture(scope="module")
def server(readers):
    with AskServer(readers, EXAMPLE, host="127.0.0.1", port=0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    binary, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not (binary and driver):
        pytest.skip("no Chromium with its chromedriver here")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    browser.implicitly_wait(20)
    yield browser
    browser.quit()


@pytest.fixture
def page(server, browser):
    """The page, freshly loaded, as a function that finds an element by its CSS selector."""
    browser.get_log("browser")
    browser.get(server.url)

    def find(selector):
        return browser.find_element("css selector", selector)

    find(".reply")
    yield find
    # Nothing that the page's policy forbids, no error of its script; Chromium logs a refused question too.
    assert [entry for entry in browser.get_log("browser") if "/ask - Failed to load" not in entry["message"]] == []


def paste(browser, field, text):
    field.clear()
    field.click()
    browser.execute_cdp_cmd("Input.insertText", {"text": text})  # chromedriver types no character beyond U+FFFF


def test_every_models_answer_is_marked_where_the_server_says(server, browser, page):
    paste(browser, page("#text"), TEXT)
    paste(browser, page("#question"), QUESTION)
    page("#question").send_keys("\n")
    page(".reply.filled mark")
    connection = http.client.HTTPConnection(*server.server_address[:2])
    asked = {"text": TEXT, "question": QUESTION}
    connection.request("POST", "/ask", json.dumps(asked), {"Content-Type": "application/json"})
    replies = json.loads(connection.getresponse().read())["replies"]
    connection.close()
    assert len(replies) == 2
    for name, reply in zip(("student-int8", "teacher"), replies, strict=True):
        card = f".reply[data-model={name}]"
        before = browser.execute_script("return arguments[0].previousSibling.data", page(f"{card} mark"))
        assert page(f"{card} mark").get_property("textContent") == reply["answer"] == page(f"{card} .answer").text
        assert before == TEXT[: reply["start"]] and reply["start"] >= TEXT.index("e")
        assert page(f"{card} .text").get_property("textContent") == TEXT
        assert page(f"{card} .score").text == f"{100 * reply['score']:.1f} %"
        assert page(f"{card} .time").text.endswith(" ms") and "ms tokenization + " in page(f"{card} .parts").text
        assert page(card).is_displayed()
    assert browser.execute_script("return document.querySelector('.reply b')") is None


def test_an_error_is_shown_in_place_of_old_answers(browser, page):
    page("#ask").click()
    assert page(".reply.filled .answer").is_displayed()  # the example's
    paste(browser, page("#question"), " ")
    page("#ask").click()
    assert page("#error:not([hidden])").text == "The question is empty: type one."
    assert not page(".reply .answer").is_displayed()
    paste(browser, page("#question"), "a" * 1_001)
    page("#ask").click()
    assert page("#error:not([hidden])").text == "question: has 1,001 characters; at most 1,000"
    paste(browser, page("#question"), "who")
    page("#ask").click()
    page(".reply.filled")
    assert not page("#error").is_displayed()


def test_the_keyboard_is_enough(browser, page):
    assert page("#question") == browser.switch_to.active_element
    assert page("#text").get_property("value") == EXAMPLE.context
    page("#text").send_keys(webdriver.Keys.CONTROL + "\n")
    assert page(".reply.filled .answer").is_displayed()
    for selector, label in (("#text", "Text"), ("#question", "Question"), ("#ask", "Ask")):
        assert page(selector).accessible_name == label


def test_a_narrow_window_scrolls_only_downwards(browser, page):
    browser.set_window_size(500, 900)  # Chromium's least width
    page("#ask").click()
    page(".reply.filled")
    width, inner = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    browser.set_window_size(1200, 1000)
    assert width <= inner
