"""Where a run's numbers and pictures go: its own folder always, Weights & Biases by default, the terminal."""

from fedmtl.tracking.base import RunInfo, Tracker
from fedmtl.tracking.run_directory import RunDirectory

__all__ = ["RunDirectory", "RunInfo", "TensorBoard", "Tracker", "WandB"]


def __getattr__(name: str) -> type[Tracker]:
    if name == "WandB":  # wandb takes a while to import and not every run needs it
        from fedmtl.tracking.wandb_tracker import WandB

        return WandB
    if name == "TensorBoard":
        from fedmtl.tracking.tensorboard_tracker import TensorBoard

        return TensorBoard
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
