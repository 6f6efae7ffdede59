"""`fedmtl compare` on real runs, and its page in a real browser."""

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmtl.comparison import compare
from fedmtl.comparison.table import metrics

CHROMIUM = next((path for name in ("chromium", "google-chrome") if (path := shutil.which(name))), None)
QUIET = [
    *("--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--no-first-run", "--disable-gpu"),
]
SEEDS = range(2)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compared")


@pytest.fixture
def three(fit: Callable[..., Any], kept: Path) -> Path:
    """Three methods with two seeds each, trained once for all tests of this file."""
    if not list(kept.iterdir()):
        diagnosed = ("--diagnostics.every", "1", "--baseline")
        for seed in SEEDS:
            common = ("--out", str(kept), "--seed", str(seed), "--name")
            assert fit("scenes_local", *common, f"local_s{seed}").code == 0
            for method in ("dea", "fedavg"):
                words = (*common, f"{method}_s{seed}", *diagnosed, str(kept / f"local_s{seed}"))
                assert fit(f"scenes_{method}", *words).code == 0
    return kept


def results(run: Path) -> Any:
    return json.loads((run / "results.json").read_text())["last"]


@pytest.mark.slow
def test_the_table_has_the_runs_own_numbers(three: Path, fedmtl: Callable[..., Any]) -> None:
    shown = fedmtl("compare", three)
    assert (shown.code, shown.error) == (0, "")
    row = next(line for line in shown.out.splitlines() if line.split()[:1] == ["dea"])
    depth = [results(three / f"dea_s{seed}")["metrics"]["depth"]["RMSE"] for seed in SEEDS]
    assert f"{np.mean(depth):.3f} ± {np.std(depth, ddof=1):.3f}" in row
    change = [results(three / f"dea_s{seed}")["delta_m"]["mean"] for seed in SEEDS]
    assert f"{np.mean(change):+.2f} ± {np.std(change, ddof=1):.2f}".replace("-", "−") in row
    assert "Δ as the runs recorded it, against local" in shown.out
    recomputed = fedmtl("compare", three, "--baseline", "local", "--csv")
    line = next(line for line in csv.DictReader(recomputed.out.splitlines()) if line["method"] == "dea")
    assert float(line["delta_m/mean"]) == pytest.approx(np.mean(change))
    assert r"\toprule" in fedmtl("compare", three / "dea_s0", "--latex").out


@pytest.mark.slow
def test_a_run_that_goes_on_is_shown_as_far_as_it_is(three: Path, fedmtl: Callable[..., Any], tmp_path: Path) -> None:
    shutil.copytree(three, tmp_path / "runs")
    going = tmp_path / "runs" / "dea_s1"
    (going / "results.json").unlink()
    lines = (going / "metrics.jsonl").read_text().splitlines()
    (going / "metrics.jsonl").write_text(lines[0] + "\n" + lines[1][:40])
    shown = fedmtl("compare", tmp_path / "runs", "--html", tmp_path / "page.html")
    assert shown.code == 0
    assert "unfinished, 1–2/2" in shown.out
    assert "unequal progress" in shown.out


@pytest.mark.slow
def test_mistakes_are_one_line(three: Path, fedmtl: Callable[..., Any], tmp_path: Path) -> None:
    for words, message in {
        ("gone",): "gone is not there",
        (tmp_path,): "is not the folder of a run",
        (three, "--baseline", "gone"): "--baseline: gone is neither",
        (three, "--html", tmp_path): "can't be written",
    }.items():
        found = fedmtl("compare", *words)
        assert (found.code, found.error.count("\n")) == (2, 1)
        assert message in found.error


def test_help_and_table_load_no_torch(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("rounds: 1")
    (tmp_path / "run" / "metrics.jsonl").write_text('{"round": 1, "val/depth/RMSE": 0.5}')
    for words in (["--help"], [str(tmp_path)]):
        code = f"""
import sys
from fedmtl.cli import main
try:
    code = main(["compare", *{words!r}])
except SystemExit as end:
    code = end.code
print("torch" in sys.modules, "matplotlib" in sys.modules)
sys.exit(code)
"""
        done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
        assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "False False")
        assert words == ["--help"] or "0.5000" in done.stdout


@pytest.fixture
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield started
        started.close()


@pytest.mark.slow
def test_the_page_in_a_browser(three: Path, fedmtl: Callable[..., Any], browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    assert fedmtl("compare", three, "--baseline", "local", "--html", path).code == 0
    said: list[str] = []
    asked: list[str] = []
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme, viewport={"width": 1280, "height": 900})
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing hangs over the edge"
    assert said == []
    assert {url for url in asked if not url.startswith("data:")} == {path.as_uri()}

    wanted = [[cell.text for cell in row] for row in metrics(compare([three], "local")).rows]
    assert page.evaluate(ROWS_OF_FIRST_TABLE) == wanted
    depth = [results(three / f"dea_s{seed}")["metrics"]["depth"]["RMSE"] for seed in SEEDS]
    assert f"{np.mean(depth):.3f} ± {np.std(depth, ddof=1):.3f}" in wanted[0]

    pictures = page.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert len(pictures) == 2 * (1 + 5 * (1 + 3)), (
        "two images: an input, and of five tasks a truth and three predictions"
    )
    assert min(pictures) > 0
    headings = page.evaluate("[...document.querySelectorAll('h2')].map(heading => heading.textContent)")
    assert [heading.split()[0] for heading in headings] == [
        *("Results", "Configurations", "Learning", "Tasks", "How", "Predictions"),
    ]
    assert page.evaluate("document.querySelectorAll('figure svg').length") == 6 + 2 + 2 + 1
    identifiers = page.evaluate("[...document.querySelectorAll('[id]')].map(element => element.id)")
    assert len(identifiers) == len(set(identifiers))
    assert page.evaluate(OVERLAPPING_LABELS) == []
    assert page.evaluate(CUT_LABELS) == []


ROWS_OF_FIRST_TABLE = """
[...document.querySelector('table tbody').rows].map(row => [...row.cells].map(cell => cell.textContent))
"""
OVERLAPPING_LABELS = """
[...document.querySelectorAll('figure svg')].flatMap(svg => {
  const texts = [...svg.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()])
  return texts.flatMap(([a, one], i) => texts.slice(i + 1)
    .filter(([b, two]) => one.left < two.right - 1 && two.left < one.right - 1
                       && one.top < two.bottom - 2 && two.top < one.bottom - 2)
    .map(([b]) => a + ' and ' + b))
})
"""
CUT_LABELS = """
[...document.querySelectorAll('figure svg')].flatMap(svg => {
  const frame = svg.getBoundingClientRect()
  return [...svg.querySelectorAll('text')].filter(text => {
    const own = text.getBoundingClientRect()
    return own.left < frame.left - 2 || own.right > frame.right + 2
  }).map(text => text.textContent)
})
"""
