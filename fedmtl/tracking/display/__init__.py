"""What a person sees of a run in a terminal or a log."""

from fedmtl.tracking.display.display import Display, Shows, choose, messages
from fedmtl.tracking.display.progress import MANY_CLIENTS, Member
from fedmtl.tracking.display.tables import federation_table, results_table

__all__ = ["MANY_CLIENTS", "Display", "Member", "Shows", "choose", "federation_table", "messages", "results_table"]
