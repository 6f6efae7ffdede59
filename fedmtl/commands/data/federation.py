"""`fedmtl data federation`: who has which images in an experiment, without training."""

import json
from pathlib import Path

from jsonargparse import ArgumentParser

from fedmtl.commands.configuration import experiment_parser, parse, plain_errors
from fedmtl.commands.words import terminal
from fedmtl.errors import UserError
from fedmtl.federation import make_clients, table
from fedmtl.tracking.display import federation_table
from fedmtl.tracking.run_directory import write_text


def parser() -> ArgumentParser:
    """The command's words."""
    made = experiment_parser("data federation", "The clients of an experiment and their images; no model is built.")
    made.add_argument(
        "--save",
        type=str | None,
        help="a JSON file for the names of each client's images, in the form that fedmtl.data.ListFile takes",
    )
    return made


def main(arguments: list[str]) -> None:
    """Parses the command line and prints the table."""
    made = parser()
    config = parse(made, arguments)
    with plain_errors():
        objects = made.instantiate(config)
    rows = table(make_clients(objects.clients, objects.data, objects.partition, seed=objects.seed), objects.local)
    terminal().print(federation_table(rows))
    if config.save:
        lists = ",\n".join(f"{_json(row['client'])}: {_json(row['ids'])}" for row in rows)
        try:
            write_text(Path(config.save), f"{{\n{lists}\n}}\n")
        except OSError as error:
            raise UserError(f"--save: can't write {config.save}: {error.strerror}") from error


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
