"""An aggregator of one's own; own_method.yaml names it."""

from torch import Tensor

from fedmtl.aggregation import Aggregator, PartUpdate


class SignPower(Aggregator):
    """The weighted mean of the clients' updates, smaller where they disagree about the direction.

    A coordinate of the mean is multiplied by |Σ w_k sign Δ_k / Σ w_k|^power: 1 where all clients go the same way,
    near 0 where half of them go the other.

    Args:
        power: how much disagreement costs; 0 is the mean itself, which is FedAvg.

    Raises:
        ValueError: `power` is negative.
    """

    def __init__(self, *, power: float = 1.0) -> None:
        if power < 0:
            raise ValueError(f"power must not be negative, got {power}")
        self.power = power
        self.updates: Tensor | None = None
        self.signs: Tensor | None = None
        self.weight = 0.0

    def add(self, update: PartUpdate, weight: float) -> None:
        """Takes one client's update (d,)."""
        if self.updates is None or self.signs is None:
            self.updates, self.signs = update.delta.new_zeros(()), update.delta.new_zeros(())
        self.updates = self.updates + weight * update.delta
        self.signs = self.signs + weight * update.delta.sign()
        self.weight += weight

    def merge(self) -> Tensor | None:
        """The merged update (d,); the next round starts empty."""
        if self.updates is None or self.signs is None:
            return None
        merged = self.updates / self.weight * (self.signs / self.weight).abs() ** self.power
        self.updates, self.signs, self.weight = None, None, 0.0
        return merged
