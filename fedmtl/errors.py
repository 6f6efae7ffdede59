"""The one exception for mistakes that a user can mend: the command line prints it as a single line."""

MISMATCH = (  # what torchvision's missing operators mean
    "torch and torchvision do not match (a CPU-only torch beside the registry's torchvision?): "
    "in a fresh environment, install both together: pip install -e . in the folder of the repository"
)


class UserError(Exception):
    """What is wrong, where, and what to do about it, in one line."""
