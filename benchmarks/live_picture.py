"""Draws docs/pictures/live.svg: the live view in the middle of a real, small run, with a baseline.

python benchmarks/live_picture.py
"""

import re
import tempfile
from io import StringIO
from pathlib import Path
from time import perf_counter

import yaml
from rich.console import Console

from fedmtl.commands import fit
from fedmtl.tracking.display import Display
from fedmtl.tracking.display.view import render

ROOT = Path(__file__).parents[1]
SMALL = {
    "data": {"init_args": {"train": 160, "val": 32, "size": 48}},
    "model": {"init_args": {"backbone": "test_convnext"}},
    "local": {"batch_size": 8, "epochs": 2, "schedule": {"init_args": {"warmup_t": 1}}},
    "fabric": {"accelerator": "cpu", "threads": 1},
    "rounds": 20,
    "eval_every": 1,
    "pictures": 0,
    "tracker": None,
}
WIDTH = 92
MOMENT = (15, 2, 6)  # round, clients done in it, steps of the next


class Photographed(Display):
    """A display that keeps what it shows at the moment."""

    picture = ""

    def step(self) -> None:
        """Takes the picture after a step, if it is the one."""
        super().step()
        p = self.progress
        if (p.round, len(p.done) - 1, p.done[p.client]) == MOMENT:
            console = Console(file=StringIO(), record=True, force_terminal=True, color_system="truecolor", width=WIDTH)
            p.now = perf_counter()
            console.print(render(p, width=WIDTH, height=30))
            Photographed.picture = local_fonts(console.export_svg(title="fedmtl fit", unique_id="live"))


def local_fonts(svg: str) -> str:
    """The picture without the fonts that it would load from outside."""
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    return svg.replace("Fira Code", "Menlo, Consolas, DejaVu Sans Mono")


def main() -> None:
    """Runs baseline and federation, and saves the picture."""
    fit.Display = Photographed  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "small.yaml"
        small.write_text(yaml.safe_dump({**SMALL, "out": folder}), encoding="utf-8")
        for name, more in {"scenes_local": [], "scenes_dea": ["--baseline", f"{folder}/scenes_local"]}.items():
            experiment = str(ROOT / "experiments" / f"{name}.yaml")
            fit.main(["--config", experiment, "--config", str(small), "--quiet", *more])
    target = ROOT / "docs" / "pictures" / "live.svg"
    target.write_text(Photographed.picture, encoding="utf-8")
    print(f"saved as {target}")


if __name__ == "__main__":
    main()
