"""What the README and the pages of docs/ tell a reader to type works, in the order in which they say it."""

import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .documented import follow

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory beside the experiments; modules that a page shows are forgotten at the end."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "experiments").symlink_to(EXPERIMENTS)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.slow
def test_the_readmes_commands_run_in_their_order(
    fedmtl: Callable[..., Any], tiny: Path, place: Path, nyud_root: Callable[..., Path]
) -> None:
    readme = ROOT / "README.md"
    (place / "docs").symlink_to(ROOT / "docs")
    shutil.copytree(nyud_root(train=8, val=3), place / "path" / "to" / "NYUDv2")
    small_nyud = shlex.split(
        "--model.backbone test_convnext --model.pretrained false --model.options null --data.crop '[32,48]' "
        "--local.epochs 1 --rounds 1 --fabric.workers 0 --tracker null"
    )
    small_scenes = ["--config", str(tiny), "--out", "runs", "--tracker", "null"]

    def smaller(words: list[str]) -> list[str]:
        if words[0] == "sweep":
            return ["--dry-run"]  # the tutorial runs one
        if words[0] == "export":
            return ["--formats", "timm"]  # the tutorial makes them all
        if words[0] != "fit":
            return []
        return small_nyud if "nyud" in " ".join(words) else small_scenes

    assert follow(readme, fedmtl, smaller) >= 5


@pytest.mark.slow
def test_the_tutorial_can_be_followed(fedmtl: Callable[..., Any], tiny: Path, place: Path) -> None:
    tiny_words = ["--config", str(tiny), "--out", "runs/hour", "--tracker", "null"]

    def smaller(words: list[str]) -> list[str]:
        if words[0] == "sweep":
            return ["--count", "1", "--", "--config", str(tiny), "--tracker", "null"]
        return tiny_words if words[0] == "fit" else []

    assert follow(ROOT / "docs" / "tutorial.md", fedmtl, smaller) >= 10
    assert {"fedavg_s0", "local_s1", "dea_s1"} <= {path.name for path in (place / "runs" / "hour").iterdir()}
    assert (place / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_what_is_ones_own_runs_as_the_page_has_it(fedmtl: Callable[..., Any], tiny: Path, place: Path) -> None:
    def smaller(words: list[str]) -> list[str]:
        few = shlex.split("--local.batch_size 2 --local.epochs 1 --rounds 2 --eval_every 1 --fabric.threads 1")
        if "leaning.yaml" not in words:
            few += ["--data.train", "16", "--data.val", "4"]
        return few if words[0] == "fit" else []

    assert follow(ROOT / "docs" / "extending.md", fedmtl, smaller) >= 8
    assert len((place / "runs" / "lines" / "lines.txt").read_text().splitlines()) == 2
