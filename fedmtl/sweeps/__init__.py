"""Sweeps: many runs from one file in W&B's format, run here, summed up in a table and a plot."""
