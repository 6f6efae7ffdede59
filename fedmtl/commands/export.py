"""`fedmtl export`: a run's encoder for timm, its unified model for torch.export and ONNX, with a model card."""

from argparse import ArgumentParser
from pathlib import Path
from urllib.parse import quote

from fedmtl.commands.words import say, size

EPILOG = """DIR gets timm/ (the encoder), torch/model.pt2 and onnx/model.onnx (the whole model), and README.md, a model
card. Each is compared with the original on test pictures and kept only if it agrees; one that fails leaves nothing
behind, the others go on, and the exit code is then 1. Of what is in DIR, only an earlier export is ever replaced. ONNX
needs pip install -e ".[onnx]" in the folder of the repository. Neither the run's data nor the network is needed."""


def parser() -> ArgumentParser:
    """What the command takes."""
    parser = ArgumentParser(prog="fedmtl export", description=__doc__, epilog=EPILOG, allow_abbrev=False)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="default: RUN/export; with --client NAME, RUN/export/NAME"
    )
    parser.add_argument(
        "--formats",
        type=lambda text: text.split(","),
        metavar="A,B",
        help="default: timm,torch,onnx, the last where its packages are installed",
    )
    parser.add_argument("--checkpoint", choices=["last", "best"], default="last", help="which checkpoint")
    parser.add_argument("--client", metavar="NAME", help="the model of this client instead of the unified one")
    parser.add_argument("--size", type=size, metavar="H,W", help="size of pictures (default: that of validation)")
    return parser


def main(arguments: list[str]) -> None:
    """Parses the command line and exports.

    Raises:
        SystemExit: with 1, if a format failed.
    """
    own = parser().parse_args(arguments)
    from rich.console import Console

    from fedmtl.commands.restored import restore_model
    from fedmtl.export import FORMATS, available, export

    console = Console()
    out = own.out or own.run / "export" / quote(own.client or "", safe=" +")

    model = restore_model("export", own.run, own.checkpoint, own.client, "cpu")
    outcomes = export(model, out, formats=own.formats, size=own.size)
    for one in outcomes:
        if not one.done:
            say(console, f"{one.format}: not exported: {one.reason}")
            continue
        takes = "" if one.format == "timm" else f"; takes {one.takes}"
        say(
            console,
            f"{one.format}: {out / one.format}, differs from the original by at most {one.difference:.3g}{takes}",
        )
    left_out = [] if own.formats else [name for name in FORMATS if name not in available()]
    for name in left_out:
        say(console, f'{name}: left out, pip install -e ".[{name}]" in the folder of the repository adds it')
    if any(one.done for one in outcomes):
        say(console, f"model card: {out / 'README.md'}")
    if not all(one.done for one in outcomes):
        raise SystemExit(1)
