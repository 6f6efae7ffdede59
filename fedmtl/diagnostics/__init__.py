"""Numbers that show why a federation works or fails, and warnings in words."""

from fedmtl.diagnostics.diagnostics import Diagnostics
from fedmtl.diagnostics.warning_signs import WarningSigns

__all__ = ["Diagnostics", "WarningSigns"]
