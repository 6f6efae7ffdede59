"""Which modules the classes that files name may come from: to name a class is to run its module."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from fedmtl.errors import UserError

# what configurations need; the rest of torch and timm can also load code, download, and write files
BUILT_IN = ("fedmtl", "torch.optim", "timm.scheduler")


@dataclass(frozen=True)
class Trust:
    """Where classes may come from.

    Args:
        modules: dotted paths of modules or single classes; what lies below one is trusted with it. None: everything.
    """

    modules: tuple[str, ...] | None = None

    def covers(self, path: str) -> bool:
        """Whether a module or class of this dotted path is trusted."""
        return self.modules is None or any(path == name or path.startswith(f"{name}.") for name in self.modules)

    def check(self, path: str, where: str) -> None:
        """Refuses a class; to be called before it is imported.

        Args:
            path: dotted path of the class, as a file names it.
            where: file and key, for the message.

        Raises:
            UserError: the class is of no trusted module.
        """
        if not self.covers(path):
            raise UserError(f"{where}: {refusal(path)}")


def refusal(path: str) -> str:
    """What a user is told of a class that is not trusted, and what to do."""
    module = path.rpartition(".")[0] or path
    return f"{path} is of no trusted module; if it may run any code here, add --trusted-modules {module}"


_own, _others = Trust(), Trust()


def of_own_files() -> Trust:
    """Whom configurations that the user names may name: anybody, unless ``--trusted-modules`` says otherwise."""
    return _own


def of_others_files() -> Trust:
    """Whom files may name that come with data and runs; in Python, outside of any command and `limited`, anybody."""
    return _others


@contextmanager
def limited(named: Sequence[str] | None) -> Iterator[None]:
    """Files of others may name classes of `BUILT_IN` and of what the user names; if he names any, his own too.

    It holds for the whole process, all its threads included, until it is left.

    Args:
        named: dotted paths of modules or classes that are trusted beside `BUILT_IN`, or None.

    Raises:
        UserError: something is no dotted path.
    """
    global _own, _others
    for name in named or ():
        if not all(part.isidentifier() for part in name.split(".")):
            raise UserError(f"--trusted-modules takes modules such as mine,lab.tasks, not {name!r}")
    before = _own, _others
    trust = Trust((*BUILT_IN, *(named or ())))
    _own, _others = Trust() if named is None else trust, trust
    try:
        yield
    finally:
        _own, _others = before
