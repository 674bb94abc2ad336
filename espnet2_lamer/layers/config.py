"""Options of a mixture of LoRA experts, and how many experts each layer gets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from espnet2_lamer.errors import RecipeError

LINEARS = ("intermediate_dense", "output_dense")
TARGETS = (*LINEARS, "ffn")
ROUTERS = ("ffn", "projection")
BALANCES = ("loss", "bias", "importance", "none")
MERGES = ("none", "utterance")


def check_values(prefix: str, *rows: tuple[str, Any, Any, str]) -> None:
    """Refuse the first wrong value among ``(key, value, is right, what is expected)``.

    Raises:
        RecipeError: With the key, what was found and what is expected.
    """
    for key, value, right, expected in rows:
        if not right:
            raise RecipeError(
                f"{prefix}{key}: found {repr(value)[:80]}, expected {expected}"
            )


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
        merge: ``"none"``, or ``"utterance"``: probabilities are averaged over an
            utterance, and experts by these (SMEAR, arXiv 2306.03745), see
            :class:`~espnet2_lamer.layers.experts.LoRAExperts`. It takes ``top_k:
            null`` and ``balance: importance`` or ``none``: every expert has a part in
            the merged one, so there are no shares of frames to choose or to balance.
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
    merge: str = "none"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        self.targets = tuple(self.targets)
        targets, router, balance = list(self.targets), self.router, self.balance
        some = targets and set(targets) <= set(TARGETS)
        used, soft = self.top_k, "1 or more, or null for soft routing"
        table = [
            ("targets", targets, some, f"a non-empty subset of {list(TARGETS)}"),
            ("router", router, router in ROUTERS, f"one of {list(ROUTERS)}"),
            ("balance", balance, balance in BALANCES, f"one of {list(BALANCES)}"),
            ("merge", self.merge, self.merge in MERGES, f"one of {list(MERGES)}"),
            ("rank", self.rank, self.rank >= 1, "1 or more"),
            ("top_k", used, used is None or used >= 1, soft),
            ("dropout", self.dropout, 0.0 <= self.dropout < 1.0, "[0, 1)"),
        ]
        check_values("lamer.", *table)
        if self.merges:
            beside = f"beside merge: {self.merge}: every expert is in the merged one"
            even = ("importance", "none")
            check_values(
                "lamer.",
                ("top_k", used, used is None, f"null {beside}"),
                ("balance", balance, balance in even, f"one of {list(even)} {beside}"),
            )

    @property
    def merges(self) -> bool:
        """Whether experts of a layer are averaged to one for each utterance."""
        return self.merge != "none"


def parse_allocation(
    allocation: str | int | Sequence[int], num_layers: int
) -> list[int]:
    """Expand an allocation to one expert count per layer, shallow to deep.

    Three readings: one number is used in every layer; as many numbers as layers are
    taken as they are; otherwise the layers are split into equal consecutive groups,
    so that ``"2,4,6,8"`` over 24 layers is the paper's 2 x 6, 4 x 6, 6 x 6, 8 x 6
    (Lamer-SSL, section 2.2). A count of 0 leaves the layer's frozen FFN alone.

    Raises:
        ValueError: Not integers, negative, or not divisible into equal groups.
    """
    parts = [allocation] if isinstance(allocation, int) else allocation
    parts = allocation.split(",") if isinstance(allocation, str) else parts
    try:
        counts = [int(part) for part in parts]
        exact = isinstance(allocation, str) or counts == list(parts)
    except (TypeError, ValueError):
        exact = False
    if not exact:
        raise ValueError(
            f"allocation {allocation!r}: expected integers separated by commas, e.g. "
            "'2,4,6,8'"
        )
    if not counts or min(counts) < 0:
        raise ValueError(
            f"allocation {allocation!r}: expected expert counts of 0 or more"
        )
    if num_layers % len(counts):
        raise ValueError(
            f"allocation {allocation!r} names {len(counts)} groups, but {num_layers} "
            f"layers cannot be split into {len(counts)} equal groups; give one number, "
            f"{num_layers} numbers, or a divisor of {num_layers}"
        )
    repeat = num_layers // len(counts)
    return [count for count in counts for _ in range(repeat)]
