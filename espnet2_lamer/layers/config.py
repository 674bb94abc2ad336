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
        rank: Rank r of an expert (Eq. 2), in the forms of ``allocation``: one number,
            one per group of layers, or one per layer.
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
        merge: ``"none"``, or ``"utterance"``: probabilities are averaged over an
            utterance, and experts by these (SMEAR, arXiv 2306.03745), see
            :class:`~espnet2_lamer.layers.experts.LoRAExperts`. It takes ``top_k:
            null`` and ``balance: importance`` or ``none``: every expert has a part in
            the merged one, so there are no shares of frames to choose or to balance.

    Raises:
        ValueError: An option has an unknown or impossible value.
    """

    allocation: str | int | Sequence[int] = "2,4,6,8"
    rank: int | str | Sequence[int] = 12
    alpha: float | None = None
    top_k: int | None = 2
    targets: Sequence[str] = LINEARS
    router: str = "ffn"
    balance: str = "loss"
    dropout: float = 0.0
    merge: str = "none"

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
            ("top_k", used, used is None or used >= 1, soft),
            ("dropout", self.dropout, 0.0 <= self.dropout < 1.0, "[0, 1)"),
        ]
        check_values("lamer.", *table)
        numbers = _numbers(self.rank)
        least, one = min(numbers, default=0), isinstance(self.rank, int)
        row = ("rank", self.rank, least >= 1, "1 or more" + ", each" * (not one))
        check_values("lamer.", row)
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


def _numbers(value: str | int | Sequence[int]) -> list[int]:
    """Read integers: one, a list of them, or text with commas; none where it is not."""
    parts = [value] if isinstance(value, int) else value
    parts = value.split(",") if isinstance(value, str) else parts
    try:
        numbers = [int(part) for part in parts]
        exact = isinstance(value, str) or numbers == list(parts)
    except (TypeError, ValueError):
        exact = False
    return numbers if exact else []


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
    return _by_layer("allocation", allocation, num_layers, 0, "expert counts")


def parse_ranks(rank: str | int | Sequence[int], num_layers: int) -> list[int]:
    """Expand ranks to one per layer, as :func:`parse_allocation` does counts.

    Raises:
        ValueError: Not integers, below 1, or not divisible into equal groups.
    """
    return _by_layer("rank", rank, num_layers, 1, "ranks")


def _by_layer(
    name: str, value: str | int | Sequence[int], num_layers: int, least: int, what: str
) -> list[int]:
    numbers = _numbers(value)
    if not numbers and value not in ([], ()):
        raise ValueError(
            f"{name} {value!r}: expected integers separated by commas, e.g. '2,4,6,8'"
        )
    if not numbers or min(numbers) < least:
        raise ValueError(f"{name} {value!r}: expected {what} of {least} or more")
    if num_layers % len(numbers):
        raise ValueError(
            f"{name} {value!r} names {len(numbers)} groups, but {num_layers} layers "
            f"cannot be split into {len(numbers)} equal groups; give one number, "
            f"{num_layers} numbers, or a divisor of {num_layers}"
        )
    repeat = num_layers // len(numbers)
    return [number for number in numbers for _ in range(repeat)]
