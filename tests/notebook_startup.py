"""What a kernel of the tests runs first: shell cells call fedmtl in the kernel, whose libraries are loaded already."""

import os
import re
import shlex
import subprocess
import warnings

from IPython import get_ipython

warnings.filterwarnings("ignore", "IProgress not found")  # tqdm's, in kernels without widgets


def bash(line: str, cell: str) -> None:
    """Runs a cell's lines: commands of fedmtl here, others in a shell; variables are set and used."""
    from fedmtl.cli import main

    for text in cell.splitlines():
        words = shlex.split(os.path.expandvars(text), comments=True)
        if words[:1] == ["fedmtl"]:
            code = main(words[1:])
            if code:
                raise RuntimeError(f"{text} ended with {code}")
        elif len(words) == 1 and (assigned := re.fullmatch(r"(\w+)=(.*)", words[0])):
            os.environ[assigned[1]] = assigned[2]
        elif words:
            subprocess.run(text, shell=True, check=True)


if (shell := get_ipython()) is not None:  # else something looks at this file
    shell.register_magic_function(bash, "cell")
