"""The page in a real browser: Debian's Chromium, driven by Playwright's package."""

import os
import shutil
import time

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from drawing import small_model
from live_server import Running
from playwright.sync_api import expect, sync_playwright

from torchrsm.media.films import encode_mp4

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None and "TORCHRSM_NEEDS_BROWSER" not in os.environ, reason="chromium is not installed: make browser"
)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


SCREENS = {"wide, light": (1280, "light"), "phone, dark": (390, "dark")}
# For what is on the page alike, however wide it is.
on_one_screen = pytest.mark.parametrize("page", [SCREENS["wide, light"]], indirect=True, ids=["wide, light"])


@pytest.fixture(params=SCREENS.values(), ids=SCREENS)
def page(browser, server, request):
    """Open the page and see it play; what it writes to its console is an error."""
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme, accept_downloads=True)
    opened = context.new_page()
    said = []
    opened.on("console", lambda message: said.append((message.type, message.text)))
    opened.on("pageerror", lambda error: said.append(("error", str(error))))
    opened.goto(f"http://{server.address}/")
    until(opened, lambda data: int(data.get("step") or 0) >= 3)
    yield opened
    context.close()
    refused = "status of 422"  # how the browser itself notes an upload that was refused
    assert not [(kind, text) for kind, text in said if kind in ("error", "warning") and refused not in text]


def hooks(page):
    return page.evaluate("({...document.body.dataset})")


def until(page, condition, seconds=30):
    """Wait for what the page says of itself."""
    deadline = time.monotonic() + seconds
    while not condition(data := hooks(page)):
        assert time.monotonic() < deadline, data
        page.wait_for_timeout(50)
    return data


def playing(page, wanted=True):
    if (hooks(page).get("playing") == "true") != wanted:
        page.click("#play")
    until(page, lambda data: (data.get("playing") == "true") == wanted)


def drawn(page, canvas):
    """Return the mean level of a canvas."""
    return page.evaluate(
        """name => {
            const c = document.querySelector(name);
            const copy = new OffscreenCanvas(c.width, c.height).getContext("2d", {willReadFrequently: true});
            copy.drawImage(c, 0, 0);
            const d = copy.getImageData(0, 0, c.width, c.height).data;
            let sum = 0;
            for (let i = 0; i < d.length; i += 4) sum += d[i] + d[i + 1] + d[i + 2];
            return sum / d.length;
        }""",
        canvas,
    )


def until_drawn(page, canvas, level, size=None):
    """Wait for a canvas of a size and a mean level above this one; the first prediction of a new source is black."""
    deadline = time.monotonic() + 30
    while True:
        mean = drawn(page, canvas)
        of = page.evaluate("name => (c => [c.width, c.height])(document.querySelector(name))", canvas)
        if mean > level and size in (None, tuple(of)):
            return
        assert time.monotonic() < deadline, (canvas, mean, of)
        page.wait_for_timeout(50)


def test_it_plays_steps_dreams_and_wakes(page):
    playing(page)
    first = int(hooks(page)["step"])
    until(page, lambda data: int(data["step"]) > first + 10)
    for canvas in ("#truth-0", "#prediction-0", "#overlay-0", "#winners-0-0"):
        until_drawn(page, canvas, 1)
    playing(page, False)
    page.wait_for_timeout(200)
    step = int(hooks(page)["step"])
    page.keyboard.press(".")
    until(page, lambda data: int(data["step"]) == step + 1)
    page.click("#dream")
    page.locator("body").click(position={"x": 3, "y": 3})  # or the button has the focus, and the space bar
    page.keyboard.press(" ")
    until(page, lambda data: data["mode"] == "dream" and data["playing"] == "true" and int(data["step"]) > step + 30)
    assert float(hooks(page)["error"]) > 5  # a dream goes its own way
    page.keyboard.press("d")
    until(page, lambda data: data["mode"] == "predict")
    until(page, lambda data: float(data["error"] or 99) < 5)


@pytest.fixture(scope="module")
def drawing_server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "drawing"
    small_model().save(folder)
    running = Running(folder)
    yield running
    running.stop()


def test_another_future_of_the_same_past(page, drawing_server):
    page.goto(f"http://{drawing_server.address}/")
    until(page, lambda data: int(data.get("step") or 0) >= 3)
    playing(page)
    until_drawn(page, "#stage-0-0", 1)
    assert page.locator("#stage-0-1").count() == 0  # the last stage makes the prediction
    another, caption = page.locator("#redraw"), page.locator("#panes").get_by_text("future")
    assert not another.is_visible()
    page.click("#dream")
    another.wait_for()
    caption.filter(has_text="future 1, step").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    another.click()
    caption.filter(has_text="future 2, step").wait_for()
    page.locator("body").click(position={"x": 3, "y": 3})
    page.keyboard.press("n")
    caption.filter(has_text="future 3, step").wait_for()
    page.keyboard.press("d")
    another.wait_for(state="hidden")


def test_what_the_models_see_can_be_disturbed(page):
    playing(page)
    caption, select = page.locator("#panes .pane:not([hidden]) .truth .name").first, page.locator("#disturb")
    caption.filter(has_text="truth").wait_for()
    select.select_option("bar")
    caption.filter(has_text="what it sees").wait_for()
    # The middle of the picture is hatched: grey, with more blue than red.
    middle = """() => { const c = document.querySelector("#truth-0");
        return [...c.getContext("2d").getImageData(c.width / 2, c.height / 2, 1, 1).data]; }"""
    red, _, blue, _ = page.evaluate(middle)
    assert blue == red + 18
    page.locator("body").click(position={"x": 3, "y": 3})
    page.keyboard.press("h")
    expect(select).to_have_value("blank")
    page.keyboard.press("h")
    caption.filter(has_text="truth").wait_for()
    expect(select).to_have_value("none")


def test_it_fits_the_screen(page):
    wide = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide[0] <= wide[1]
    small = page.evaluate(
        """() => [...document.querySelectorAll("button, select, input[type=range]")]
            .filter(e => e.offsetParent !== null && e.getBoundingClientRect().height < 39)
            .map(e => e.id || e.textContent)"""
    )
    assert small == [] or page.viewport_size["width"] > 600, small


def test_two_models_stand_side_by_side(page):
    page.click("#add-model")
    page.wait_for_selector("#prediction-1")
    page.select_option("#model-1", "copy-last")
    until(page, lambda data: int(data["step"]) >= 5 and data["playing"] == "true")
    until_drawn(page, "#prediction-1", 1)
    page.click("#remove-model")
    page.wait_for_selector("#prediction-1", state="hidden")


def test_a_ball_is_thrown(page):
    playing(page)
    page.select_option("#balls", "1")
    until(page, lambda data: 3 <= int(data["step"]) < 60)
    canvas = page.locator("#truth-0")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.8 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.75 * box["height"], steps=4)
    page.mouse.up()
    assert page.locator("#toast").is_hidden() or "error" not in (page.locator("#toast").text_content() or "").lower()
    step = int(hooks(page)["step"])
    until(page, lambda data: int(data["step"]) > step + 3)


@on_one_screen
def test_it_trains_and_the_error_falls(page):
    playing(page)
    page.click("#train")
    until(page, lambda data: data["training"] in ("running", "queued"))
    until(page, lambda data: data["training"] == "running" and data.get("error"), 60)
    # It begins near 70; that of the frame before is 12. A busy machine may show the first error late.
    until(page, lambda data: 0 < float(data["error"] or 0) < 6, 90)
    page.click("#stop")
    until(page, lambda data: data["training"] == "ended")


@on_one_screen
def test_an_uploaded_video_is_predicted(page, tmp_path):
    rng = np.random.default_rng(1)
    tones = rng.integers(40, 255, (40, 3), dtype=np.uint8)
    film = encode_mp4((np.broadcast_to(tone, (48, 64, 3)) for tone in tones), 20)
    (tmp_path / "film.mp4").write_bytes(film)
    page.set_input_files("#file", tmp_path / "film.mp4")
    until_drawn(page, "#truth-0", 20, size=(64, 48))
    until_drawn(page, "#prediction-0", 5)


@on_one_screen
def test_a_file_that_is_no_video_is_refused_and_said_so(page, tmp_path):
    (tmp_path / "notes.mp4").write_bytes(b"no film at all")
    page.set_input_files("#file", tmp_path / "notes.mp4")
    page.get_by_text("must be a complete video file").first.wait_for()


@on_one_screen
def test_a_clip_is_saved(page, tmp_path):
    with page.expect_download(timeout=60_000) as download:
        page.click("#clip")
    download.value.save_as(tmp_path / "clip.mp4")
    assert (tmp_path / "clip.mp4").read_bytes()[4:8] == b"ftyp"


def test_the_keys_are_explained(page):
    page.keyboard.press("?")
    page.wait_for_selector("dialog[open]")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog[open]", state="detached")


def test_it_survives_a_server_that_starts_again(browser):
    server = Running()
    page = browser.new_page()
    try:
        page.goto(f"http://{server.address}/")
        until(page, lambda data: int(data.get("step") or 0) >= 3)
        server.stop()
        until(page, lambda data: data["connection"] == "reconnecting")
        assert page.locator("#banner").is_visible()
        assert drawn(page, "#truth-0") > 1  # the last frame stays
        server = Running(port=server.port)
        until(page, lambda data: data["connection"] == "open" and data["playing"] == "true", 30)
        assert page.locator("#banner").is_hidden()
    finally:
        page.close()
        server.stop()


def test_a_pane_says_what_its_model_has_not_seen(page):
    note = page.locator('.pane[data-pane="0"] .world-note')
    page.select_option("#balls", "3")
    until(page, lambda data: note.is_hidden())
    page.select_option("#balls", "5")
    until(page, lambda data: note.is_visible())
    assert note.inner_text().lower() == "a world that the model has not seen: balls 5 (learned from 3)"
    page.select_option("#balls", "3")
    until(page, lambda data: note.is_hidden())


def barriers(page):
    """Return what axe finds on the page that shuts somebody out: rules of WCAG, contrast and names included."""
    found = Axe().run(page).response["violations"]
    return [(rule["id"], [node["target"] for node in rule["nodes"]]) for rule in found]


def test_the_page_shuts_nobody_out(page):
    """As it begins, with a second model beside the first while both dream, and with its dialogs open."""
    assert barriers(page) == []
    page.locator("button.add").first.click()
    page.locator("#dream").click()
    until(page, lambda data: data.get("dreaming") == "true" or int(data.get("step") or 0) > 8)
    assert barriers(page) == []
    page.evaluate("document.getElementById('dream').setAttribute('aria-busy', 'true')")  # as while the server answers
    assert barriers(page) == []
    page.keyboard.press("?")
    expect(page.locator("#help-dialog")).to_be_visible()
    assert barriers(page) == []
