"""What changes local training; the plain case, FedAvg, changes nothing."""

from collections.abc import Sequence

from torch import Tensor, nn


class LocalAlgorithm:
    """A rule that acts on a client's local steps. The base class is FedAvg: plain local training."""

    def correct_gradients(self, parameters: Sequence[nn.Parameter], anchors: Sequence[Tensor]) -> None:
        """Called between backward pass and optimizer step; changes ``parameter.grad`` in place.

        Args:
            parameters: the client's trained parameters.
            anchors: their values at the start of the round, in the same order.
        """


class FedAvg(LocalAlgorithm):
    """Plain local training (McMahan et al. 2017, arXiv 1602.05629)."""
