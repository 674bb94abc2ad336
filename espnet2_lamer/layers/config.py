"""The options of a mixture of LoRA experts, as they stand in ``encoder_conf.lamer``."""

from collections.abc import Sequence
from dataclasses import dataclass

LINEARS = ("intermediate_dense", "output_dense")
TARGETS = (*LINEARS, "ffn")
ROUTERS = ("ffn", "projection")
BALANCES = ("loss", "bias", "importance", "none")


@dataclass
class LamerConfig:
    """What :func:`add_lamer` inserts. The defaults are Lamer-SSL's.

    Args:
        allocation: Experts per layer, see :func:`parse_allocation`.
        rank: Rank r of an expert (Eq. 2).
        alpha: LoRA scale is alpha / rank; ``None`` means alpha = rank, i.e. 1 as in
            Eq. 2.
        top_k: Experts per frame (Eq. 4); ``None`` uses all experts (soft, MiLorE-SSL).
        targets: What gets experts: the FFN's Linears ``"intermediate_dense"`` and
            ``"output_dense"``, or ``"ffn"``, the FFN as a whole (experts from its
            input to its output, beside it); any subset.
        router: ``"ffn"``, one router per FFN that all targets share (Fig. 1c), or
            ``"projection"``, one per target (Eq. 1-5 read literally).
        balance: ``"loss"`` (Eq. 7), ``"bias"`` (loss-free selection bias),
            ``"importance"`` (N * sum m_k^2) or ``"none"``.
        dropout: Dropout before A.

    Raises:
        ValueError: An option has an unknown or impossible value.
    """

    allocation: str | int | Sequence[int] = "2,4,6,8"
    rank: int = 12
    alpha: float | None = None
    top_k: int | None = 2
    targets: Sequence[str] = LINEARS
    router: str = "ffn"
    balance: str = "loss"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Check every field, so that a typo fails before training."""
        self.targets = tuple(self.targets)
        unknown = set(self.targets) - set(TARGETS)
        if unknown or not self.targets:
            raise ValueError(
                f"lamer.targets: found {list(self.targets)}, expected a non-empty "
                f"subset of {list(TARGETS)}"
            )
        for key, allowed in (("router", ROUTERS), ("balance", BALANCES)):
            if getattr(self, key) not in allowed:
                raise ValueError(
                    f"lamer.{key}: found {getattr(self, key)!r}, expected one of "
                    f"{list(allowed)}"
                )
        if self.rank < 1:
            raise ValueError(f"lamer.rank: found {self.rank}, expected 1 or more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(
                f"lamer.top_k: found {self.top_k}, expected 1 or more, or null for "
                "soft routing"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"lamer.dropout: found {self.dropout}, expected [0, 1)")
