"""`fedmtl data`: checks and shows data sets, and says where they are to be had; one file a subcommand."""

import importlib
from difflib import get_close_matches

from fedmtl.errors import UserError

COMMANDS = {
    "check": "decode every image and label: what is missing or broken, and what the labels hold",
    "preview": "draw some images with their labels into one picture",
    "federation": "who has which images in an experiment, without training",
    "download": "where to get data sets (nothing is downloaded)",
}

HELP = """usage: fedmtl data COMMAND ...

Looks after data sets: in a folder, or as the configuration file of an experiment names them.

commands:
{commands}

Start with: fedmtl data check data/NYUDv2
       or:  fedmtl data check --config experiments/nyud_dea.yaml --data.root data/NYUDv2
More on a command: fedmtl data COMMAND --help
""".format(commands="\n".join(f"  {name:<10} {summary}" for name, summary in COMMANDS.items()))


def main(arguments: list[str]) -> None:
    """Runs one subcommand.

    Raises:
        UserError: there is no such subcommand, or what it says.
        SystemExit: with 1, where a check has found something wrong.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return
    command = arguments[0]
    if command not in COMMANDS:
        near = get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        raise UserError(f"unknown command {command!r}; {hint}")
    importlib.import_module(f"fedmtl.commands.data.{command}").main(arguments[1:])
