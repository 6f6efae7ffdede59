"""NYUD-v2: indoor pictures with semantic segmentation, depth, surface normals and edges."""

from pathlib import Path

from fedmtl.data.files import Cache, FileSource
from fedmtl.data.nyud_layouts import FORTY, LAYOUTS, class_names, detect, present, split_ids
from fedmtl.data.source import replace_tasks
from fedmtl.data.transforms import TrainTransform, ValTransform
from fedmtl.errors import UserError
from fedmtl.tasks import Depth, Edge, Normals, SemSeg, Task

CLASS_NAMES = FORTY


class NYUDv2(FileSource):
    """NYUD-v2 in any of the folders in which multi-task projects pass it around.

    The files that are there say which layout it is, and for each task which kind of file:

    - **NYUDv2** or **NYUD_MT** (FedHCA2, InvPT; ATRC, MTI-Net; ASTMT), with ``gt_sets/{train,val}.txt`` (an ID a line):
      ``images/ID`` .png or .jpg; ``segmentation/ID`` .png or .mat (variable ``segmentation``), 40 classes from 1, 0 and
      255 void; ``depth/ID`` .npy or .mat (variable ``depth``), metres; ``normals/ID`` .png, .npy or .jpg; ``edge/ID``
      .png (0 or 255) or .npy (0 or 1).
    - **nyuv2** (MTAN, LibMTL), 288×384, whose images are the files that there are: ``{train,val}/image/N.npy`` (RGB in
      0…1), ``label`` (13 classes from 0, −1 and 255 void), ``depth`` (metres), ``normal``; no edges.
    - **nyuv2-python-toolkit**, 480×640, likewise: ``image/{train,test}/ID.png``, ``seg40`` or ``seg13`` (classes from
      0, 255 void), ``depth`` (16-bit, millimetres), ``normal`` (.npy or .png); no edges. The 13 classes are taken where
      the 40 are not there, or where `tasks` gives a "semseg" of 13.

    A depth of 0 and a normal of zero are unknown. Labels need to exist only for the tasks in use; `tasks` has those
    that there are files for.

    Normals are vectors in .npy files and n = 2v/255 − 1 in pictures, and are taken as they are stored. The first
    component counts as x, which flipping negates, as the projects' own loaders do. They do not say where y and z point,
    which may differ between layouts: compare runs on one set of files. Pictures as .jpg are lossy.

    Args:
        root: the data set's folder.
        crop: height and width of training crops, and the least size of padded validation images. None: 288×384 in the
            layout of MTAN, 448×576 in the others.
        scale: see `TrainTransform`, like the next three.
        max_class_share: see `TrainTransform`.
        flip: see `TrainTransform`.
        photometric: see `TrainTransform`.
        tasks: replacements, by name, of the default tasks "semseg", "depth", "normals" and "edge".
        cache: where decoded files are kept, ``none``, ``memory`` or ``disk``; see `FileSource`.

    Raises:
        UserError: the folder is missing or of no known layout, or a split file is missing or malformed.
        ValueError: an option of the transforms is out of its range.
    """

    name = "nyud"

    def __init__(
        self,
        root: str | Path,
        *,
        crop: tuple[int, int] | None = None,
        scale: tuple[float, float] | None = (0.5, 2.0),
        max_class_share: float = 0.75,
        flip: float = 0.5,
        photometric: bool = True,
        tasks: dict[str, Task] | None = None,
        cache: Cache = "none",
    ) -> None:
        root = Path(root).expanduser()
        if not root.is_dir():
            raise UserError(f"root: there is no folder {root}; it must hold {_IMAGES}")
        layout = detect(root)
        if layout is None:
            raise UserError(f"{root}: is no layout of NYUD-v2 that is known; expected {_IMAGES}")
        ids = split_ids(root, layout)
        given = (tasks or {}).get("semseg")
        formats = present(root, layout, ids, num_classes=given.channels if given else len(FORTY))
        names = class_names(formats["semseg"]) if "semseg" in formats else FORTY
        semseg = SemSeg(num_classes=len(names), class_names=names)
        defaults = semseg, Depth(), Normals(), Edge(max_distance=0.011)
        known = replace_tasks({task.name: task for task in defaults}, tasks)
        self.layout = layout
        super().__init__(
            root=root,
            tasks={name: task for name, task in known.items() if name in formats},
            formats=formats,
            ids=ids,
            folders=layout.folders,
            cache=cache,
        )
        crop = crop or layout.crop
        self.train_transform = TrainTransform(
            crop=crop, scale=scale, max_class_share=max_class_share, flip=flip, photometric=photometric
        )
        self.val_transform = ValTransform(size=crop)

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Whether a folder looks like this data set."""
        layout = detect(root)
        return layout is not None and (not layout.split_files or (root / "gt_sets").is_dir())

    def lacks(self, task: str) -> str:
        """Which files were looked for."""
        if task in self.layout.formats:
            return f"{self.root} has no labels for {task!r}: there is no {self.layout.shown(task)}"
        return f"{self.root} has no {task!r}, as the layout {self.layout.name}; there are {', '.join(self.tasks)}"


_IMAGES = "; or ".join(f"{layout.shown('image')} as in {layout.name}" for layout in LAYOUTS)
