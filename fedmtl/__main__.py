"""`python -m fedmtl` is the `fedmtl` command."""

from fedmtl.cli import entry

if __name__ == "__main__":  # else to import it would run a command
    entry()
