"""`fedmtl data download`: says where data sets are to be had, in the copies that this field uses; downloads nothing."""

from typing import NamedTuple

from fedmtl.commands.advice import among
from fedmtl.commands.data.parser import Parser


class Copy(NamedTuple):
    """A data set as someone has prepared it for several tasks.

    Attributes:
        what: what it is.
        tasks: what it has labels for.
        links: where it is to be had, each with who says so.
        unpack: what to do with the file.
        root: the folder that comes out.
        terms: page of those who made the data.
    """

    what: str
    tasks: str
    links: tuple[str, ...]
    unpack: str
    root: str
    terms: str


NYU = "https://cs.nyu.edu/~silberman/datasets/nyu_depth_v2.html"
PASCAL = "http://host.robots.ox.ac.uk/pascal/VOC/voc2010/ and https://cs.stanford.edu/~roozbeh/pascal-context/"
ATRC = "  as named by github.com/brdav/atrc and InvPT; reported gone since 2023"
INVPT = "  the same, from InvPT's author: github.com/prismformore/Multi-Task-Transformer"
SHAREPOINT = "https://hkustconnect-my.sharepoint.com/:u:/g/personal/hyeae_connect_ust_hk"

COPIES = {
    "nyud": Copy(
        what="NYUD-v2 as used by ATRC, InvPT and FedHCA2: 795 + 654 images of 425×560, 40 classes",
        tasks="semseg, depth, normals, edge",
        links=(
            "https://data.vision.ee.ethz.ch/brdavid/atrc/NYUDv2.tar.gz",
            ATRC,
            f"{SHAREPOINT}/EZ-2tWIDYSFKk7SCcHRimskBhgecungms4WFa_L-255GrQ?e=6jAt4c",
            INVPT,
        ),
        unpack="tar xzf NYUDv2.tar.gz -C data",
        root="data/NYUDv2",
        terms=NYU,
    ),
    "nyud-mt": Copy(
        what="NYUD-v2 as used by MTI-Net and ASTMT: the same images at 480×640, 40 classes",
        tasks="semseg, depth, normals, edge",
        links=(
            "https://drive.google.com/file/d/14EAEMXmd3zs2hIMY63UhHPSFPDAkiTzw/view",
            "  as named by github.com/SimonVandenhende/Multi-Task-Learning-PyTorch",
            "https://data.vision.ee.ethz.ch/kmaninis/share/MTL/NYUD_MT.tgz",
            "  with labels in MATLAB files, as named by github.com/facebookresearch/astmt",
        ),
        unpack="tar xzf NYUD_MT.tgz -C data",
        root="data/NYUD_MT",
        terms=NYU,
    ),
    "nyud-mtan": Copy(
        what="NYUD-v2 as used by MTAN and LibMTL: 288×384, 13 classes, about 8.5 GB",
        tasks="semseg, depth, normals",
        links=(
            "https://www.dropbox.com/s/p2nn02wijg7peiy/nyuv2.zip?dl=0",
            "  as named by github.com/lorenmt/mtan",
            "https://www.dropbox.com/sh/86nssgwm6hm3vkb/AACrnUQ4GxpdrBbLjb6n-mWNa?dl=0",
            "  as named by github.com/median-research-group/LibMTL",
        ),
        unpack="unzip nyuv2.zip -d data, so that data/nyuv2/train/image/0.npy is there",
        root="data/nyuv2",
        terms=NYU,
    ),
    "nyud-toolkit": Copy(
        what="NYUD-v2 from its original file (2.8 GB) by a script: 480×640, 40 or 13 classes",
        tasks="semseg, depth, normals",
        links=(
            "https://github.com/VainF/nyuv2-python-toolkit",
            "  the script; its README names the next two",
            "http://horatio.cs.nyu.edu/mit/silberman/nyu_depth_v2/nyu_depth_v2_labeled.mat",
            "https://inf.ethz.ch/personal/ladickyl/nyu_normals_gt.zip",
        ),
        unpack="python extract_nyuv2.py --mat nyu_depth_v2_labeled.mat --normal_zip nyu_normals_gt.zip "
        "--data_root data/NYUv2",
        root="data/NYUv2",
        terms=NYU,
    ),
    "pascal-context": Copy(
        what="PASCAL-Context as used by ATRC, InvPT and FedHCA2: 4,998 + 5,105 images",
        tasks="semseg, human_parts, saliency, normals, edge",
        links=(
            "https://data.vision.ee.ethz.ch/brdavid/atrc/PASCALContext.tar.gz",
            ATRC,
            f"{SHAREPOINT}/ER57KyZdEdxPtgMCai7ioV0BXCmAhYzwFftCwkTiMmuM7w?e=2Ex4ab",
            INVPT,
        ),
        unpack="tar xzf PASCALContext.tar.gz -C data",
        root="data/PASCALContext",
        terms=PASCAL,
    ),
    "pascal-mt": Copy(
        what="PASCAL-Context as used by ASTMT and MTI-Net: the same images",
        tasks="semseg, human_parts, saliency, normals, edge",
        links=(
            "https://data.vision.ee.ethz.ch/kmaninis/share/MTL/PASCAL_MT.tgz",
            "  as named by github.com/facebookresearch/astmt",
        ),
        unpack="tar xzf PASCAL_MT.tgz -C data",
        root="data/PASCAL_MT",
        terms=PASCAL,
    ),
}


def parser() -> Parser:
    """The command's words."""
    made = Parser("download", __doc__)
    text = f"one of {', '.join(COPIES)}; all if left out"
    made.add_argument(
        "name", metavar="NAME", nargs="?", choices=list(COPIES), type=among("data set", COPIES), help=text
    )
    return made


def main(arguments: list[str]) -> None:
    """Parses the command line and prints.

    Raises:
        UserError: nothing is known of a data set of that name.
    """
    name = parser().parse_args(arguments).name
    print("Nothing is downloaded. Data sets have terms of use of their own: read them first, at the pages given.")
    print("Links are those of public code and may have moved; all layouts are recognised by what lies in the folder.")
    for key, copy in COPIES.items():
        if name in (None, key):
            print(f"\n{key}: {copy.what}\n  labels: {copy.tasks}\n  terms:  {copy.terms}\n  from:")
            print("\n".join(f"    {line}" for line in copy.links))
            print(f"  unpack: {copy.unpack}\n  then:   fedmtl data check {copy.root}")
