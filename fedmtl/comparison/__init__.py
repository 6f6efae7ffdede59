"""Runs side by side: seeds grouped, Δm, tables for the terminal, LaTeX and CSV, a page with charts and pictures."""

from fedmtl.comparison.comparison import Comparison, compare

__all__ = ["Comparison", "compare"]
