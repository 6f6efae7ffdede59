"""Algorithms after which each client has a model, or heads, of its own: Ditto and FedRep."""

from fedmtl.algorithms.base import LocalAlgorithm, LocalRound, Phase
from fedmtl.algorithms.fedprox import pull


class Ditto(LocalAlgorithm):
    """FedAvg, and beside it a model of the client's own that is pulled towards the global one.

    Li et al. 2021, arXiv 2012.04221: the client's own v minimises f_k(v) + λ/2 ‖v − θ_global‖² and is never sent. It is
    what is measured.

    Args:
        pull: strength λ, > 0.
        epochs: local epochs of the own model, None for as many as the received one is trained.

    Raises:
        ValueError: a value is not positive.
    """

    personal = True

    def __init__(self, *, pull: float = 0.1, epochs: int | None = None) -> None:
        if not pull > 0:
            raise ValueError(f"pull must be positive, not {pull}")
        if epochs is not None and epochs < 1:
            raise ValueError(f"epochs must be at least 1, not {epochs}")
        self.pull, self.epochs = pull, epochs

    def check(self, share: str) -> None:
        """Needs something shared."""
        if share == "none":
            raise ValueError("local.algorithm: Ditto pulls towards a global model, and with share: none there is none")

    def phases(self, epochs: int) -> list[Phase]:
        """The received model, then the own."""
        return [Phase("train", epochs), Phase("personal", self.epochs or epochs, personal=True)]

    def correct_gradients(self, run: LocalRound) -> None:
        """Pulls the own model."""
        if run.phase.personal:
            pull(run.pairs(run.start), self.pull)


class FedRep(LocalAlgorithm):
    """The client's own head is trained first, on the encoder as received; then the encoder, on that head.

    Collins et al. 2021, arXiv 2102.07078. Wants `share: encoder`. With heads and encoder trained together it is FedPer
    (Arivazhagan et al. 2019, arXiv 1912.00818), which is plain training with `share: encoder`.

    Args:
        head_epochs: local epochs of the head; those of the encoder are the client's local epochs.

    Raises:
        ValueError: `head_epochs` is not positive.
    """

    def __init__(self, *, head_epochs: int = 1) -> None:
        if head_epochs < 1:
            raise ValueError(f"head_epochs must be at least 1, not {head_epochs}")
        self.head_epochs = head_epochs

    def check(self, share: str) -> None:
        """Heads must be the clients' own."""
        if share != "encoder":
            raise ValueError(f"local.algorithm: FedRep keeps heads at their clients; set share: encoder, not {share}")

    def phases(self, epochs: int) -> list[Phase]:
        """The head, then the encoder."""
        return [Phase("heads", self.head_epochs, trains="heads"), Phase("encoder", epochs, trains="encoder")]
