"""The report page in a real browser: nothing on the console, nothing fetched, every chart drawn, in light and in dark."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import random_batch, tiny_model

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.studies.comparison import ComparisonArguments, compare
from hf_spectral_prune.studies.comparison.report import write_comparison_report

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("report_pages")]

TINY = {"target_scope": "prunable", "round_to": 4, "min_ffn_units": 4, "disable_tqdm": True}
BATCHES = [random_batch(4, 32, seed) for seed in range(3)]

# Of every figure: its box, the boxes of its shapes and words, and whether a word lies outside of it.
FIGURES = """
() => [...document.querySelectorAll("svg")].map(svg => {
  const own = svg.getBoundingClientRect();
  const outside = box => box.left < own.left - 1 || box.right > own.right + 1
    || box.top < own.top - 1 || box.bottom > own.bottom + 1;
  const texts = [...svg.querySelectorAll("text")];
  return {
    width: own.width, height: own.height, label: svg.getAttribute("aria-label"),
    shapes: [...svg.querySelectorAll("path, use")].filter(shape => {
      const box = shape.getBBox();
      return box.width + box.height > 0;
    }).length,
    texts: texts.length,
    outside: texts.filter(text => outside(text.getBoundingClientRect())).map(text => text.textContent),
  };
})
"""
# Names of colours that the page uses and does not define: shapes in them would be black.
UNDEFINED = """
() => [...document.documentElement.outerHTML.matchAll(/var\\((--\\w+)\\)/g)].map(match => match[1])
  .filter(name => !getComputedStyle(document.documentElement).getPropertyValue(name))
"""
# Least contrast, as WCAG counts it, between a word and the background behind it, over all words of the page.
CONTRAST = """
() => {
  const parse = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = colour => {
    const [r, g, b] = parse(colour).slice(0, 3).map(v => v / 255)
      .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = node => {
    for (; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if (parse(colour)[3] !== 0) return colour;
    }
  };
  let least = 21;
  for (const node of document.querySelectorAll("main *")) {
    if (![...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim())) continue;
    const style = getComputedStyle(node);
    const [a, b] = [light(node.tagName === "text" ? style.fill : style.color), light(behind(node))];
    least = Math.min(least, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
  }
  return least;
}
"""
# Pixels of the smallest letters of the charts, as they stand on the screen.
LETTERS = """
() => Math.min(...[...document.querySelectorAll(".chart svg")].flatMap(svg => {
  const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
  return [...svg.querySelectorAll("text")].map(text => parseFloat(getComputedStyle(text).fontSize) * scale);
}))
"""
# Words of a chart that touch each other: the letters of a phone are larger than those of a wide page.
TOUCHING = """
() => [...document.querySelectorAll(".chart svg")].flatMap(svg => {
  const boxes = [...svg.querySelectorAll("text")].map(text => [text.textContent, text.getBoundingClientRect()]);
  const touch = (a, b) => a.left < b.right && b.left < a.right && a.top + a.height / 4 < b.bottom - b.height / 4
    && b.top + b.height / 4 < a.bottom - a.height / 4;
  return boxes.flatMap(([one, a], i) => boxes.slice(i + 1).filter(([, b]) => touch(a, b)).map(([other]) => [one, other]));
})
"""
# Words at the left of a table of words that are broken over two lines.
BROKEN = """
() => [...document.querySelectorAll(".words th[scope=row]")].filter(cell => {
  const range = document.createRange();
  range.selectNodeContents(cell);
  const lines = new Set([...range.getClientRects()].map(box => Math.round(box.top)));
  return lines.size > 1 && !/\\s/.test(cell.textContent.trim());
}).map(cell => cell.textContent)
"""


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium or Chrome of the machine."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs `pip install 'hf-spectral-prune[browser]'`")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None:
        pytest.skip("needs Chromium or Chrome on the machine")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=["--disable-background-networking", "--no-first-run"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Folders with a page: a run of 30 layers that measured everything, one of 1 layer, and a comparison."""
    root = tmp_path_factory.mktemp("pages")
    training = {"max_steps": 4, "per_device_train_batch_size": 4, "use_cpu": True}
    runs = {
        "deep": (30, {"num_rounds": 2, "eval_strategy": "steps", "recovery": "full", "training_args": training}),
        "flat": (1, {}),
    }
    for name, (layers, fields) in runs.items():
        args = SpectralPruningArguments(output_dir=str(root / name), self_check=False, target_reduction=0.4, **TINY | fields)
        rows = [{"input_ids": row} for row in random_batch(8, 16, 5)["input_ids"].tolist()]
        model = tiny_model(num_hidden_layers=layers)
        pruner = SpectralPruner(model, args, BATCHES, [random_batch(2, 32, 9)], train_dataset=rows)
        output = pruner.prune()
        # The longest cells of the table before and after; lm_eval itself need not be there.
        sides = {"acc": 0.987, "acc_norm": 0.123}, {"acc": 0.021, "acc_norm": 0.021}
        output.report.lm_eval = {
            "version": "0.4.13",
            "limit": 20,
            "tasks": {"hellaswag": {"before": sides[0], "after": sides[0], "before_stderr": sides[1], "after_stderr": sides[1]}},
        }
        pruner.save_model()
    args = ComparisonArguments(
        output_dir=str(root / "compared"),
        criteria=["energy", "random"],
        reductions=[0.2, 0.4],
        compensations=["none", "least_squares"],
        seeds=[1, 2],
        **TINY,
    )
    compare(tiny_model(), args, BATCHES, [random_batch(2, 32, 9)])
    write_comparison_report(root / "compared")
    return {name: root / name for name in ("deep", "flat", "compared")}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["deep", "flat", "compared"])
def test_the_page_in_a_browser(name, scheme, browser, folders, tmp_path):
    page = browser.new_page(color_scheme=scheme, viewport={"width": 1000, "height": 800})
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    address = (folders[name] / "report.html").as_uri()
    page.goto(address)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert said == [] and asked == [address]

    figures = page.evaluate(FIGURES)
    assert len(figures) == {"deep": 10, "flat": 6, "compared": 2}[name]
    for figure in figures:
        assert figure["width"] > 250 and figure["height"] > 60, figure
        assert figure["shapes"] > 3 and figure["texts"] > 3, figure
        assert figure["outside"] == [], figure
        assert figure["label"]

    assert page.evaluate(UNDEFINED) == []
    assert page.evaluate(CONTRAST) >= 4.5
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, background.removeprefix("rgb(").removesuffix(")").split(", ")))
    assert brightness > 600 if scheme == "light" else brightness < 150
    screenshot = page.screenshot(path=tmp_path / f"{name}-{scheme}.png", full_page=True)
    assert screenshot.startswith(b"\x89PNG")
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 390, 1280, 1600])
@pytest.mark.parametrize("name", ["deep", "flat", "compared"])
def test_no_screen_is_too_narrow_or_too_wide(name, width, scheme, browser, folders):
    page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 800})
    page.goto((folders[name] / "report.html").as_uri())
    assert page.evaluate(BROKEN) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if width >= 390:
        assert 11 <= page.evaluate(LETTERS) <= 16
    assert page.evaluate(TOUCHING) == []
    # Charts scale, and the table of figures before and after keeps its last column without being pushed aside.
    assert page.evaluate("[...document.querySelectorAll('.chart')].every(one => one.scrollWidth <= one.clientWidth + 1)")
    assert page.evaluate(
        "[...document.querySelectorAll('#before-and-after .scroll')].every(one => one.scrollWidth <= one.clientWidth + 1)"
    )
    assert page.evaluate("[...document.querySelectorAll('section')].every(one => one.querySelectorAll('p, table, svg').length)")
    assert page.evaluate("document.querySelector('main').getBoundingClientRect().width") <= 56 * 16
    page.close()


def test_a_page_that_holds_a_script_would_not_run_it(browser, folders, tmp_path):
    """The second line of defence behind the escaping: the page's own policy."""
    text = (folders["flat"] / "report.html").read_text(encoding="utf-8")
    script = "<script>document.title = 'ran'</script><img src='http://localhost:9/x.png'>"
    (tmp_path / "page.html").write_text(text.replace("</main>", f"{script}</main>"), encoding="utf-8")
    page = browser.new_page()
    said, failed = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("requestfailed", lambda request: failed.append(request.failure))
    page.goto((tmp_path / "page.html").as_uri())
    assert page.title() != "ran"
    assert len(said) == 2 and all("Content Security Policy" in message for message in said)
    assert failed == ["csp"]
    page.close()
