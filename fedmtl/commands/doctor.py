"""`fedmtl doctor`: looks over this installation, and says what to do about what is wrong. Made to go into an issue."""

import importlib
import importlib.metadata
import json
import netrc
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from fedmtl import __version__
from fedmtl.commands.catalogue import PACKAGE
from fedmtl.errors import MISMATCH, UserError

Mark = Literal["ok", "warning", "wrong"]
SIGNS: dict[Mark, tuple[str, str]] = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "wrong": ("✗", "red")}

LIBRARIES = {  # distribution: what is imported of it
    "torch": "torch",
    "torchvision": "torchvision",
    "lightning": "lightning",
    "torchmetrics": "torchmetrics",
    "timm": "timm",
    "huggingface-hub": "huggingface_hub",
    "safetensors": "safetensors",
    "numpy": "numpy",
    "scipy": "scipy",
    "pillow": "PIL",
    "jsonargparse": "jsonargparse",
    "rich": "rich",
    "wandb": "wandb",
}
OPTIONAL = ("torchvision", "wandb-workspaces", "tensorboard", "matplotlib", "onnx", "onnxruntime", "shtab")
MALWARE = {("lightning", "2.6.2"), ("lightning", "2.6.3")}  # GHSA-w37p-236h-pfx3
VARIABLES = (
    *("FEDMTL_CACHE", "HF_HOME", "HF_HUB_OFFLINE", "HF_ENDPOINT", "WANDB_MODE", "WANDB_DIR", "WANDB_BASE_URL"),
    *("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "PYTHONPATH"),
)
MODES = ("online", "offline", "disabled", "shared", "dryrun", "run")  # of WANDB_MODE, as W&B takes it
LITTLE = 2  # GiB of free space below which a run may fill the disk


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        about: what was looked at.
        mark: ``ok``, ``warning`` (works, but worth knowing) or ``wrong`` (something will fail).
        found: what was found.
        advice: what to do; empty where there is nothing to do.
    """

    about: str
    mark: Mark
    found: str
    advice: str = ""


def parser() -> ArgumentParser:
    """The command's words."""
    made = ArgumentParser(
        prog="fedmtl doctor",
        description=__doc__,
        epilog="Exit code 1 if something is wrong. Nothing is sent anywhere; keys are not shown.",
        allow_abbrev=False,
    )
    made.add_argument("--data", nargs="+", type=Path, default=[], metavar="PATH", help="folders of data sets")
    made.add_argument("--out", type=Path, default=Path("runs"), help="folder of all runs (default: runs)")
    made.add_argument("--json", action="store_true", help="print JSON")
    return made


def main(arguments: list[str]) -> None:
    """Parses the command line, examines, prints.

    Raises:
        SystemExit: with 1, if something is wrong.
    """
    own = parser().parse_args(arguments)
    findings = [hidden(finding) for finding in examine(own.data, own.out)]
    if own.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2, ensure_ascii=False))
    else:
        show(findings)
    if any(finding.mark == "wrong" for finding in findings):
        raise SystemExit(1)


def examine(data: list[Path], out: Path) -> Iterator[Finding]:
    """Everything, one finding after the other; a part that breaks is a finding, too.

    Args:
        data: folders of data sets.
        out: folder of all runs.
    """
    parts: list[Callable[[], Iterator[Finding]]] = [system, versions, devices, weights, tracking, variables]
    parts += [lambda: folders(out), lambda: roots(data)]
    for part in parts:
        noise = StringIO()
        try:
            with warnings.catch_warnings(), redirect_stderr(noise):
                warnings.simplefilter("ignore")
                found = [*part()]
        except Exception as error:
            found = [Finding(getattr(part, "__name__", "data"), "wrong", reason(error), "please report this")]
        yield from found


def show(findings: list[Finding]) -> None:
    """Prints a line a finding, and what to do below it."""
    from rich.console import Console
    from rich.text import Text

    console = Console()
    width = max(len(finding.about) for finding in findings)
    for one in findings:
        sign, colour = SIGNS[one.mark]
        console.print(Text(sign, style=colour), Text(f"{one.about:<{width}}", style="bold"), one.found, **AS_IT_IS)
        if one.advice:
            console.print(f"  {'':<{width}} → {one.advice}", **AS_IT_IS)
    counts = {mark: sum(finding.mark == mark for finding in findings) for mark in SIGNS}
    console.print(f"{counts['ok']} fine, {counts['warning']} worth knowing, {counts['wrong']} wrong", **AS_IT_IS)


AS_IT_IS: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}


def hidden(finding: Finding) -> Finding:
    """A finding without the user's home folder, and without what might be a key."""
    home = str(Path.home())

    def clean(text: str) -> str:
        text = re.sub(rf"{re.escape(home)}(?=[/\\]|\b)", "~", text) if len(home) > 1 else text
        text = re.sub(r"://[^/\s@]+@", "://…@", text)
        return re.sub(r"\b(hf_|wandb_v1_)?[A-Za-z0-9_]{36,}\b", "…", text)

    return Finding(finding.about, finding.mark, clean(finding.found), clean(finding.advice))


def system() -> Iterator[Finding]:
    """Python, operating system, this package and its commit."""
    version = sys.version_info
    old = version < (3, 10)
    advice = "fedmtl needs Python 3.10 or later" if old else ""
    where = "an environment of its own" if sys.prefix != sys.base_prefix else "no virtual environment"
    yield Finding("python", "wrong" if old else "ok", f"{platform.python_version()}, {where}", advice)
    yield Finding("system", "ok", f"{platform.platform()}, {platform.machine()}")
    yield Finding("fedmtl", "ok", f"{__version__} in {PACKAGE}{commit(PACKAGE.parent)}")


def commit(folder: Path) -> str:
    """The commit of a working copy, and whether files differ from it; empty where there is none."""
    if not (folder / ".git").exists():
        return ""

    def git(*words: str) -> str:
        try:
            done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout.strip()

    head = git("rev-parse", "--short", "HEAD")
    return f", commit {head}{' with changes' if git('status', '--porcelain') else ''}" if head else ""


def versions() -> Iterator[Finding]:
    """The libraries: whether they are there, can be imported, and are not known to be bad."""
    bounds = needed("fedmtl")
    broken_first = ""
    for name, module in LIBRARIES.items():
        version = version_of(name)
        if version is None:
            mark: Mark = "warning" if name in OPTIONAL else "wrong"
            yield Finding(name, mark, "not installed", f"pip install {name}" if mark == "wrong" else "")
        elif (name, version) in MALWARE:
            advice = "change the keys and passwords that this machine holds, then pip install -U lightning"
            yield Finding(name, "wrong", f"{version} is malware (GHSA-w37p-236h-pfx3)", advice)
        elif broken := import_error(module):
            advice = f"mend {broken_first} first" if broken_first else explained(broken, name)
            broken_first = broken_first or name
            yield Finding(name, "wrong", f"{version}, but can't be imported: {broken}", advice)
        elif unfit := outside(version, bounds.get(name, "")):
            yield Finding(name, "wrong", f"{version}, but fedmtl needs {unfit}", f'pip install "{name}{unfit}"')
        else:
            yield Finding(name, "ok", version)
    torch = version_of("torch")
    if torch and (unfit := outside(torch.partition("+")[0], needed("torchvision").get("torch", ""))):
        yield Finding("torch", "wrong", f"{torch}, but this torchvision is made for {unfit}", MISMATCH)
    others = {name: version_of(name) for name in OPTIONAL if name not in LIBRARIES}
    there = [f"{name} {version}" for name, version in others.items() if version]
    yield Finding("extras", "ok", ", ".join(there) or "none installed")


def version_of(name: str) -> str | None:
    """Version of an installed distribution, None if it is not there."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def needed(package: str) -> dict[str, str]:
    """What a package needs of its dependencies, as its own metadata say; by name, e.g. ``>=2.6``."""
    try:
        from packaging.requirements import Requirement

        found = [Requirement(line) for line in importlib.metadata.requires(package) or []]
    except (importlib.metadata.PackageNotFoundError, ImportError):
        return {}
    return {one.name: str(one.specifier) for one in found if one.marker is None or one.marker.evaluate({"extra": ""})}


def outside(version: str, bounds: str) -> str:
    """The bounds, if a version lies outside of them; empty if it is within, or nothing can tell."""
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:
        return ""
    return "" if not bounds or SpecifierSet(bounds).contains(version, prereleases=True) else bounds


def import_error(module: str) -> str:
    """Why a module can't be imported, in one line; empty if it can."""
    try:
        importlib.import_module(module)
    except Exception as error:
        return reason(error)
    return ""


def explained(broken: str, name: str) -> str:
    """What to do about a library that can't be imported."""
    if "torchvision::" in broken:
        return MISMATCH
    return f"install it again: pip install --force-reinstall {name}"


def reason(error: BaseException) -> str:
    """An error in one short line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 200 else text[:199] + "…"


def devices() -> Iterator[Finding]:
    """Processor, memory, and what torch can compute on."""
    memory = f", {memory_size():.0f} GiB memory" if memory_size() else ""
    yield Finding("processor", "ok", f"{os.cpu_count()} CPUs, {usable_cpus()} for this process{memory}")
    if import_error("torch"):
        return
    import torch

    cuda = torch.version.cuda
    yield Finding(
        "threads", "ok", f"{torch.get_num_threads()} in torch; runs take fabric.threads; torch's choice if null"
    )
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(i)
            bf16 = "bf16" if torch.version.hip or card.major >= 8 else "no bf16: fabric.precision: 32-true"
            yield Finding(f"cuda:{i}", "ok", f"{card.name}, {card.total_memory / 2**30:.0f} GiB, CUDA {cuda}, {bf16}")
    elif cuda and shutil.which("nvidia-smi"):
        advice = "see whether nvidia-smi works, and whether CUDA_VISIBLE_DEVICES hides it"
        yield Finding("cuda", "warning", f"torch is built for CUDA {cuda} but finds no usable GPU", advice)
    else:
        kind = f"built for CUDA {cuda}" if cuda else "built for CPUs"
        yield Finding("cuda", "ok", f"none; torch is {kind}; fabric.accelerator: auto takes the CPU")
    mps = getattr(torch.backends, "mps", None)
    if mps is not None and mps.is_available():
        yield Finding("mps", "ok", "Apple GPU")


def memory_size() -> float:
    """The machine's memory in GiB; 0 where that can't be told."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, ValueError, OSError):
        return 0.0


def usable_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def weights() -> Iterator[Finding]:
    """Where pretrained weights come from; nothing is asked for."""
    if import_error("huggingface_hub"):
        return
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    models = len([*folder.glob("models--timm--*")]) if folder.is_dir() else 0
    offline = ", offline: only these can be had" if constants.HF_HUB_OFFLINE else ""
    advice = "give weights as a file with model.weights, or unset HF_HUB_OFFLINE" if offline and not models else ""
    mark: Mark = "warning" if advice else "ok"
    yield Finding("weights", mark, f"{models} of timm's models are in {folder}{offline}", advice)


def tracking() -> Iterator[Finding]:
    """Whether W&B would be online; without asking it, and without showing the key."""
    mode = os.environ.get("WANDB_MODE", "")
    key = wandb_key()
    found = f"a key is set up ({key})" if key else "no key is set up"
    if mode not in ("", *MODES):
        yield Finding("W&B", "warning", f"{found}; W&B knows no WANDB_MODE={mode}", f"one of {', '.join(MODES)}")
    elif mode in ("offline", "dryrun", "disabled"):
        yield Finding("W&B", "ok", f"{found}; WANDB_MODE={mode}")
    elif key:
        yield Finding("W&B", "ok", f"{found}: runs go online; tracker.mode: offline keeps them here")
    else:
        yield Finding("W&B", "ok", f"{found}: runs are kept offline; wandb login sets one up, wandb sync uploads later")


def wandb_key() -> str:
    """Where a key for W&B is set up; empty if it is nowhere."""
    if os.environ.get("WANDB_API_KEY"):
        return "WANDB_API_KEY"
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    file = Path(os.environ.get("NETRC") or Path.home() / ("_netrc" if os.name == "nt" else ".netrc"))
    try:
        return str(file) if netrc.netrc(file).authenticators(host) else ""
    except (OSError, netrc.NetrcParseError):
        return ""


def variables() -> Iterator[Finding]:
    """Environment variables that change what happens."""
    found = [f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ]
    yield Finding("variables", "ok", ", ".join(found) or "none of those that matter is set")


def folders(out: Path) -> Iterator[Finding]:
    """Whether runs and decoded data can be written, and how much space there is."""
    yield writable("runs", out, "give another folder with --out")
    if import_error("platformdirs"):
        return
    import platformdirs

    cache = Path(os.environ.get("FEDMTL_CACHE") or platformdirs.user_cache_dir("fedmtl"))
    finding = writable("cache", cache, "set FEDMTL_CACHE to a folder that can be written")
    yield finding if finding.mark != "wrong" else Finding("cache", "warning", finding.found, finding.advice)


def writable(about: str, folder: Path, advice: str) -> Finding:
    """Tries to write a file; a folder that is not there is not made, its nearest parent counts."""
    folder = folder.expanduser().absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    state = "" if there == folder else " (to be made)"
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        return Finding(about, "wrong", f"{folder}{state} can't be written: {error.strerror}", advice)
    free = shutil.disk_usage(there).free / 2**30
    found = f"{folder}{state}, {free:.1f} GiB free"
    return Finding(about, "warning" if free < LITTLE else "ok", found, "make room" if free < LITTLE else "")


def roots(data: list[Path]) -> Iterator[Finding]:
    """What lies in folders of data sets, as far as their lists and first images tell."""
    if not data:
        yield Finding("data", "ok", "not looked at; --data PATH looks at folders of data sets")
        return
    if broken := import_error("fedmtl.data.detect"):
        yield Finding("data", "wrong", f"can't be looked at: {broken}", "mend what is named above first")
        return
    from fedmtl.data.detect import open_root
    from fedmtl.data.source import SPLITS

    for root in data:
        try:
            source = open_root(root)
            for split in SPLITS:
                if source.ids(split):
                    source.load(split, 0, "image")
        except (UserError, ValueError, OSError) as error:
            yield Finding("data", "wrong", str(error), "docs/data.md says what belongs where; fedmtl data check")
            continue
        counts = ", ".join(f"{len(source.ids(split))} {split}" for split in SPLITS)
        yield Finding("data", "ok", f"{source.name} in {root}: {counts}; tasks {', '.join(source.tasks)}")
