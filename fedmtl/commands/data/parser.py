"""How the data commands read their words; light, so that those that need no data set answer at once."""

import argparse
from typing import NoReturn

from fedmtl.errors import UserError


class Parser(argparse.ArgumentParser):
    """Words of the command line; a mistake is a `UserError`."""

    def __init__(self, command: str, description: str | None) -> None:
        super().__init__(prog=f"fedmtl data {command}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raises `UserError`."""
        raise UserError(f"{message}; see {self.prog} --help")
