"""Finds out which data set lies in a folder."""

from pathlib import Path

from fedmtl.data.folder import Folder
from fedmtl.data.nyud import NYUDv2
from fedmtl.data.pascal_context import PASCALContext
from fedmtl.data.source import DataSource
from fedmtl.errors import UserError

KINDS = (Folder, PASCALContext, NYUDv2)  # asked in this order
LOOKED_FOR = (
    "dataset.yaml (data of your own), JPEGImages and ImageSets/Context (PASCAL-Context), "
    "images and gt_sets, train/image, or image/train (NYUD-v2)"
)


def open_root(root: str | Path) -> DataSource:
    """The data set that lies in a folder, with the default options of its class.

    Raises:
        UserError: there is no such folder, no data set in it that is known, or not all of one.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise UserError(f"{root}: there is no such folder")
    for kind in KINDS:
        if kind.recognises(root):
            return kind(root)
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    inside = next((path for path in folders if any(kind.recognises(path) for kind in KINDS)), None)
    hint = f"did you mean {inside}?" if inside else f"looked for {LOOKED_FOR}"
    raise UserError(f"{root}: no data set that is known; {hint}")
