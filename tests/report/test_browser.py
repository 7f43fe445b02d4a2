"""The page as a browser shows it."""

import json

import numpy as np
import pytest

from jaxrobust.report import read_rows, write_report
from jaxrobust.report.run import is_number

WIDTHS = (1280, 400)

POINTS = """
return [...document.querySelectorAll('.plot')].map(plot => {
  const box = plot.getBoundingClientRect();
  const number = text => text.endsWith('%') ? parseFloat(text) / 100 : parseFloat(text.replaceAll(',', ''));
  const ticks = [...plot.querySelectorAll(':scope > text.tick')].map(tick => ({
    vertical: tick.getAttribute('text-anchor') == 'end', value: number(tick.textContent)}));
  const y = ticks.filter(tick => tick.vertical).map(tick => tick.value);
  return {box: [box.left, box.top, box.width, box.height], range: [y[0], y[y.length - 1]],
    points: [...plot.querySelectorAll('[data-value]')].map(point => {
      const at = point.getBoundingClientRect();
      return {series: point.closest('[data-series]').dataset.series, ...point.dataset,
        left: (at.left + at.right) / 2, top: (at.top + at.bottom) / 2};
    })};
});
"""

PIXELS = """
return Promise.all([...document.querySelectorAll('img')].map(async image => {
  await image.decode();
  const canvas = document.createElement('canvas');
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  const context = canvas.getContext('2d');
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
  return {...image.dataset, shape: [canvas.height, canvas.width, 4], pixels: [...pixels],
    rendering: getComputedStyle(image).imageRendering, caption: image.nextElementSibling.textContent};
}));
"""

TEXTS = """
const color = text => text.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map(c => c / 255)
  .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
  .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
const behind = element => {
  for (let at = element; at; at = at.parentElement) {
    const found = color(getComputedStyle(at).backgroundColor);
    if (found.length == 3 || found[3] == 1) return found;
  }
};
document.querySelectorAll('details').forEach(details => details.open = true);
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.textContent.trim() || element.tagName == 'title' || !element.checkVisibility()) continue;
  const style = getComputedStyle(element), svg = element instanceof SVGElement;
  const scale = svg ? element.getScreenCTM().a : 1;
  const pair = [light(color(svg ? style.fill : style.color)), light(behind(element))].sort((a, b) => b - a);
  const box = element.getBoundingClientRect();
  const card = element.closest('.chart, .card, .exhibit, main').getBoundingClientRect();
  found.push({text: walker.currentNode.textContent, size: parseFloat(style.fontSize) * scale, svg,
    contrast: (pair[0] + 0.05) / (pair[1] + 0.05), left: box.left - card.left, right: card.right - box.right});
}
return found;
"""


@pytest.fixture
def look(browser):
    """`look(path, width, scheme)` opens a page and gives the browser."""

    def open_page(path, width=1280, scheme="light"):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.get_log("browser")
        browser.get(path.as_uri())
        return browser

    return open_page


def check_points(browser, rows):
    """Every number of the rows is drawn, with its digits and in its place."""
    drawn = browser.execute_script(POINTS)
    found = sorted(
        (point["series"], point["step"], point["value"])
        for plot in drawn
        for point in plot["points"]
        if "step" in point
    )
    expected = sorted(
        (name, json.dumps(row["step"]), json.dumps(value))
        for row in rows
        for name, value in row.items()
        if name != "step" and is_number(value)
    )
    assert found == expected
    for plot in drawn:
        left, top, width, height = plot["box"]
        low, high = plot["range"]
        last = max(float(point.get("step", point.get("radius"))) for point in plot["points"])
        for point in plot["points"]:
            right = float(point.get("step", point.get("radius"))) / last
            up = (float(point["value"]) - low) / (high - low)
            assert abs(point["left"] - left - width * right) < 0.1, point
            assert abs(point["top"] - top - height * (1 - up)) < 0.1, point


def check_pixels(browser, arrays):
    """The gallery's images are on the page, byte for byte."""
    images = browser.execute_script(PIXELS)
    assert len(images) == 3 * len(arrays["images"])
    for image in images:
        index, kind = int(image["example"]), image["kind"]
        clean, adversarial = arrays["images"][index], arrays["adversarial"][index]
        scale = float(image["caption"].split()[-1]) if kind == "change" else 0
        shares = {"clean": clean, "adversarial": adversarial, "change": 0.5 + scale * (adversarial - clean)}[kind]
        pixels = np.array(image["pixels"]).reshape(image["shape"])
        expected = np.broadcast_to(np.round(255 * shares), (*shares.shape[:2], 3))
        np.testing.assert_array_equal(pixels[..., :3], expected)
        assert (pixels[..., 3] == 255).all()
        assert image["rendering"] == "pixelated"


def check_layout(browser, width):
    """Nothing sticks out of the page, and all text can be read."""
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    texts = browser.execute_script(TEXTS)
    assert len(texts) > 50
    assert min(text["size"] for text in texts) >= 10
    faint = [text for text in texts if text["contrast"] < 4.5]
    assert not faint, faint[0]
    outside = [text for text in texts if text["svg"] and min(text["left"], text["right"]) < 0]
    assert not outside, outside[0]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("channels", [1, 3])
def test_page_is_what_the_run_holds(look, make_run, width, scheme, channels):
    directory = make_run(channels=channels)
    browser = look(write_report(directory), width, scheme)
    assert browser.get_log("browser") == []
    check_points(browser, read_rows(directory / "metrics.jsonl"))
    with np.load(directory / "gallery.npz") as arrays:
        check_pixels(browser, dict(arrays))
    check_layout(browser, width)
    shade = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (int(shade[4:].split(",")[0]) > 128) == (scheme == "light")


@pytest.mark.parametrize("width", WIDTHS)
def test_long_names_stay_on_the_page(look, make_run, width):
    name = "configuration_with_a_rather_long_name_" * 4
    directory = make_run(configuration={"name": name}, command="jaxrobust train " + "x" * 300)
    with (directory / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 300, "split": "test", "clean": 0.5, "apgd-dlr-targeted-100": 0.25}) + "\n")
    check_layout(look(write_report(directory), width), width)


def test_page_with_many_rows_is_fast(look, make_run):
    browser = look(write_report(make_run(count=3000)))
    spent = browser.execute_script("return performance.getEntriesByType('navigation')[0].domComplete")
    assert 0 < spent < 10_000


def tampered(path, before, after):
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))
    return path


def test_tampered_digit_or_place_is_seen(look, make_run):
    directory = make_run()
    rows = read_rows(directory / "metrics.jsonl")
    value = json.dumps(rows[3]["loss"])
    browser = look(tampered(write_report(directory), f'data-value="{value}"', f'data-value="{value[:-1]}"'))
    with pytest.raises(AssertionError):
        check_points(browser, rows)
    check_points(look(write_report(directory)), rows)
    browser = look(
        tampered(write_report(directory), 'class="point circle"', 'transform="translate(0 1)" class="point circle"')
    )
    with pytest.raises(AssertionError):
        check_points(browser, rows)


def test_tampered_pixel_is_seen(look, make_run):
    directory = make_run()
    browser = look(write_report(directory))
    with np.load(directory / "gallery.npz") as file:
        arrays = dict(file)
    check_pixels(browser, arrays)
    arrays["adversarial"][4, 5, 7, 0] += 1 / 255
    with pytest.raises(AssertionError):
        check_pixels(browser, arrays)


@pytest.mark.parametrize(
    "style",
    [
        ".plot text { font-size: 9px !important }",
        "main { width: 1300px; max-width: none }",
        ".tags li { color: #888 !important }",
        ".plot { --gutter: 10px !important }",
    ],
)
def test_bad_layout_is_seen(look, make_run, style):
    path = tampered(write_report(make_run()), "</style>", style + "</style>")
    with pytest.raises(AssertionError):
        check_layout(look(path), 1280)


def test_blocked_request_is_seen(look, make_run):
    path = tampered(write_report(make_run()), "</main>", '<img src="https://example.invalid/x.png"></main>')
    assert look(path).get_log("browser") != []
