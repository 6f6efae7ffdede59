"""Files of YAML, read with errors of one line."""

from pathlib import Path
from typing import Any

import yaml

from fedmtl.errors import UserError


def read(path: Path) -> Any:
    """What a file holds: plain containers and values.

    Raises:
        UserError: it is not YAML, or can't be read.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}") from error
