"""`fedmtl export`: a run's encoder for timm, its unified model for torch.export and ONNX, with a model card."""

from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path

EPILOG = """DIR gets timm/ (the encoder), torch/model.pt2 and onnx/model.onnx (the whole model), and README.md, a model
card. Each is compared with the original on test pictures and kept only if it agrees; one that fails leaves nothing
behind, the others go on, and the exit code is then 1. ONNX needs pip install "fedmtl[onnx]". Neither the run's data
nor the network is needed."""


def parser() -> ArgumentParser:
    """What the command takes."""
    parser = ArgumentParser(prog="fedmtl export", description=__doc__, epilog=EPILOG, allow_abbrev=False)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: RUN/export")
    parser.add_argument(
        "--formats",
        type=lambda text: text.split(","),
        default=["timm", "torch", "onnx"],
        help="default: timm,torch,onnx",
    )
    parser.add_argument("--checkpoint", choices=["last", "best"], default="last", help="which checkpoint")
    parser.add_argument("--client", metavar="NAME", help="the model of this client instead of the unified one")
    parser.add_argument("--size", type=_size, metavar="H,W", help="size of pictures (default: that of validation)")
    return parser


def main(arguments: list[str]) -> None:
    """Parses the command line and exports.

    Raises:
        SystemExit: with 1, if a format failed.
    """
    own = parser().parse_args(arguments)
    from rich.console import Console

    from fedmtl.commands.restored import restore_model
    from fedmtl.export import export

    console = Console()
    out = own.out or own.run / "export"

    def say(text: str) -> None:
        shown = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
        console.print(shown, highlight=False, markup=False, soft_wrap=True)

    model = restore_model("export", own.run, own.checkpoint, own.client, "cpu")
    outcomes = export(model, out, formats=own.formats, size=own.size)
    for one in outcomes:
        if not one.done:
            say(f"{one.format}: not exported: {one.reason}")
            continue
        takes = "" if one.format == "timm" else f"; takes {one.takes}"
        say(f"{one.format}: {out / one.format}, differs from the original by at most {one.difference:.3g}{takes}")
    if any(one.done for one in outcomes):
        say(f"model card: {out / 'README.md'}")
    if not all(one.done for one in outcomes):
        raise SystemExit(1)


def _size(text: str) -> tuple[int, int]:
    sides = text.split(",")
    if len(sides) != 2 or not all(side.strip().isdecimal() and 0 < int(side) < 2**15 for side in sides):
        raise ArgumentTypeError(f"must be a height and a width such as 480,640, not {text}")
    return int(sides[0]), int(sides[1])
