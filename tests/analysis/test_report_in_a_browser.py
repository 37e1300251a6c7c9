"""The look of a run's report in a browser."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from analysis import report
from analysis.charts import heatmap

PARTITION = "model=lyft-unet/version=v1/source=lyft"


@pytest.fixture(scope="module")
def page(tables: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    report.main([f"--predictions={tables}", f"--partition={PARTITION}", f"--output={path}"])
    return path


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium is installed; on Debian: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_report_in_a_browser(browser, page: Path, scheme, width: int) -> None:
    tab = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 844})
    console: list[str] = []
    requests: list[str] = []
    tab.on("console", lambda message: console.append(message.text))
    tab.on("pageerror", lambda error: console.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(page.as_uri())
    assert console == []
    assert [url for url in requests if not url.startswith("data:")] == [page.as_uri()]
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert tab.evaluate("[...document.images].every(i => i.complete && i.naturalWidth === 48)")
    assert tab.evaluate("document.images.length") == 48
    # Contrast of text with its background required by WCAG 2.2 AA: 4.5 to 1.
    assert tab.evaluate(CONTRAST) >= 4.5
    tab.close()


@pytest.mark.parametrize("name", ["Vehicles " * 9, "v" * 80])
def test_a_long_name_fits_a_narrow_window(browser, page: Path, name: str) -> None:
    tab = browser.new_page(viewport={"width": 390, "height": 844})
    tab.set_content(page.read_text(encoding="utf-8").replace("Vehicles</td>", f"{name}</td>"))
    assert name.strip() in tab.text_content("table")
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    tab.close()


def test_print_keeps_the_colours_of_the_classes(browser, page: Path) -> None:
    tab = browser.new_page()
    tab.goto(page.as_uri())
    tab.emulate_media(media="print")
    for part in (".swatch", ".track", ".track i"):
        assert tab.eval_on_selector(part, "e => getComputedStyle(e).printColorAdjust") == "exact"
    tab.close()


@pytest.mark.parametrize(
    "name", ["Rest", "RoadLines+Roads", "Emergency vehicle " * 4, "\u8def\u9762" * 30]
)
def test_names_lie_inside_the_matrix(browser, name: str) -> None:
    tab = browser.new_page()
    tab.set_content(heatmap(np.eye(3), [name, "a", name]))
    inside = """e => {
      const all = e.getBoundingClientRect(), boxes = [...e.querySelectorAll('text')];
      return boxes.map(t => t.getBoundingClientRect()).every(box => box.left >= all.left
        && box.right <= all.right && box.top >= all.top && box.bottom <= all.bottom);
    }"""
    assert tab.eval_on_selector("svg", inside)
    tab.close()


CONTRAST = """() => {
  const luminance = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (!colour.endsWith(', 0)')) return colour;
    }
  };
  const texts = [...document.querySelectorAll('h1,h2,h3,p,td,th,dt,dd,li,figcaption,code')];
  return Math.min(...texts.filter(e => e.textContent.trim()).map(e => {
    const pair = [luminance(getComputedStyle(e).color), luminance(behind(e))];
    const [a, b] = pair.sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  }));
}"""
