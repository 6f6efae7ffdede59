"""PASCAL-Context: pictures with semantic segmentation, human parts, saliency, surface normals and edges."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedmtl.data import decode, pascal_labels
from fedmtl.data.files import Cache, FileSource, Format, read_ids
from fedmtl.data.source import SPLITS, Split, replace_tasks
from fedmtl.data.transforms import TrainTransform, ValTransform
from fedmtl.errors import UserError
from fedmtl.tasks import Edge, Normals, Parts, Saliency, SemSeg, Task

LAYOUT = (
    "it must hold JPEGImages/ID.jpg, ImageSets/Context/{train,val}.txt and, for the tasks in use, "
    "semseg/VOC12/ID.png or semseg/pascal-context/ID.png, human_parts/ID.mat, sal_distill/ID.png, "
    "normals_distill/ID.png, pascal-context/trainval/ID.mat"
)
FOLDERS = {  # what a task needs; of the two for semseg one is enough
    "semseg": ("semseg/VOC12", "semseg/pascal-context"),
    "human_parts": ("human_parts",),
    "saliency": ("sal_distill",),
    "normals": ("normals_distill", "pascal-context/trainval"),
    "edge": ("pascal-context/trainval",),
}
LABEL_MAP = "pascal-context/trainval/{id}.mat"
SHARED_CLASSES = ("json/nyu_classes.json", "json/context_classes.json")
FORMATS = {
    "image": Format("JPEGImages/{id}.jpg", decode.image),
    "semseg": Format("semseg/VOC12/{id}.png", pascal_labels.semseg),
    "human_parts": Format("human_parts/{id}.mat", pascal_labels.human_parts, slow=True),
    "saliency": Format("sal_distill/{id}.png", pascal_labels.saliency),
    "normals": Format("normals_distill/{id}.png", pascal_labels.normals, also=(LABEL_MAP,)),
    "edge": Format(LABEL_MAP, pascal_labels.edge, slow=True),
}


class PASCALContext(FileSource):
    """PASCAL-Context in the folder layout of the multi-task line of work, ``PASCALContext`` or ``PASCAL_MT``.

    ``JPEGImages/ID.jpg``, ``ImageSets/Context/{train,val}.txt`` (an ID a line) and

    - semseg: ``semseg/VOC12/ID.png``, where it is not there ``semseg/pascal-context/ID.png`` (0…20, 255 unknown);
    - human_parts: ``human_parts/ID.mat``, PASCAL-Parts, by six parts. An image without parts of persons has no label;
      ``ImageSets/Parts/{train,val}.txt`` (``{ID: [class numbers]}``) spares looking through all, if it is there;
    - saliency: ``sal_distill/ID.png``, above 127;
    - normals: ``normals_distill/ID.png`` (n = 2v/255 − 1), where the ``LabelMap`` has a class that NYU-v2 has too, by
      ``json/{nyu,context}_classes.json`` or, without these, a built-in list;
    - edge: ``pascal-context/trainval/ID.mat``, thinned boundaries of the ``LabelMap``.

    Tasks are those whose folders are there. Edges and parts are decoded once and kept in the user's cache folder.

    Args:
        root: the folder with all this.
        crop: height and width of training crops, and the least size of padded validation images.
        scale: see `TrainTransform`, like the next three.
        max_class_share: see `TrainTransform`.
        flip: see `TrainTransform`.
        photometric: see `TrainTransform`.
        tasks: replacements, by name, of the default tasks "semseg", "human_parts", "saliency", "normals" and "edge".
        cache: where decoded files are kept, ``none``, ``memory`` or ``disk``; see `FileSource`.

    Raises:
        UserError: a folder or a split file is missing, or a split file is malformed.
        ValueError: an option of the transforms is out of its range, or a task has another number of classes.
    """

    name = "pascal"

    def __init__(
        self,
        root: str | Path,
        *,
        crop: tuple[int, int] = (512, 512),
        scale: tuple[float, float] | None = (0.5, 2.0),
        max_class_share: float = 0.75,
        flip: float = 0.5,
        photometric: bool = True,
        tasks: dict[str, Task] | None = None,
        cache: Cache = "none",
    ) -> None:
        root = Path(root).expanduser()
        if not root.is_dir():
            raise UserError(f"root: there is no folder {root}; {LAYOUT}")
        if not self.recognises(root):
            raise UserError(f"root: {root} is no folder of PASCAL-Context; {LAYOUT}")
        all_tasks = _tasks(tasks)
        self._voc = frozenset(path.stem for path in (root / "semseg" / "VOC12").glob("*.png"))
        self._have_parts: dict[Split, NDArray[np.bool_]] = {}
        formats = dict(FORMATS)
        if all((root / path).exists() for path in SHARED_CLASSES):
            formats["normals"] = FORMATS["normals"]._replace(also=(LABEL_MAP, *SHARED_CLASSES))
        super().__init__(
            root=root,
            tasks={name: task for name, task in all_tasks.items() if not _absent(root, name)},
            formats=formats,
            ids={split: read_ids(root / "ImageSets" / "Context" / f"{split}.txt") for split in SPLITS},
            cache=cache,
        )
        self.train_transform = TrainTransform(
            crop=crop, scale=scale, max_class_share=max_class_share, flip=flip, photometric=photometric
        )
        self.val_transform = ValTransform(size=crop)

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Whether a folder looks like this data set."""
        return all((root / folder).is_dir() for folder in ("JPEGImages", "ImageSets/Context"))

    def has_label(self, split: Split, index: int, task: str) -> bool:
        """See `DataSource.has_label`; an image without parts of persons has no human_parts.

        Raises:
            UserError: what says so is malformed.
        """
        if task != "human_parts":
            return True
        if split not in self._have_parts:
            listed = self.root / "ImageSets" / "Parts" / f"{split}.txt"
            self._have_parts[split] = pascal_labels.have_parts(listed, self.root / "human_parts", self.ids(split))
        return bool(self._have_parts[split][index])

    def lacks(self, task: str) -> str:
        """See `DataSource.lacks`; names the folders that were looked for."""
        if task not in FOLDERS:
            return super().lacks(task)
        absent = f" {'or' if task == 'semseg' else 'and'} ".join(map(str, _absent(self.root, task)))
        return f"{self.name} has no {task!r}, for there is no {absent}; it has {', '.join(self.tasks) or 'no task'}"

    def _path(self, pattern: str, split: Split, identifier: str) -> Path:
        if pattern == FORMATS["semseg"].pattern and identifier not in self._voc:
            pattern = "semseg/pascal-context/{id}.png"
        return super()._path(pattern, split, identifier)


def _tasks(given: dict[str, Task] | None) -> dict[str, Task]:
    defaults: dict[str, Task] = {
        "semseg": SemSeg(num_classes=len(pascal_labels.CLASS_NAMES), class_names=pascal_labels.CLASS_NAMES),
        "human_parts": Parts(num_classes=len(pascal_labels.PART_NAMES), class_names=pascal_labels.PART_NAMES),
        "saliency": Saliency(primary="mIoU"),  # which this line's federated tables give; others give maxF
        "normals": Normals(),
        "edge": Edge(max_distance=0.0075),
    }
    tasks = replace_tasks(defaults, given)
    for name, task in tasks.items():
        if task.channels != defaults[name].channels:
            raise ValueError(f"tasks: {name} has {defaults[name].channels} classes here, not {task.channels}")
    return tasks


def _absent(root: Path, task: str) -> list[Path]:
    """Folders that a task's labels are missed in."""
    absent = [root / folder for folder in FOLDERS[task] if not (root / folder).is_dir()]
    return [] if task == "semseg" and len(absent) < len(FOLDERS[task]) else absent
