"""Layer-aware mixture of LoRA experts (Lamer): routing, experts, insertion, counts.

Knows torch only; torchaudio is touched when :func:`add_lamer` is called.
"""

from espnet2_lamer.layers.balance import load_balancing_loss
from espnet2_lamer.layers.config import LamerConfig, parse_allocation, parse_ranks
from espnet2_lamer.layers.experts import LoRAExpertLinear, Router
from espnet2_lamer.layers.feed_forward import (
    LamerFeedForward,
    add_lamer,
    record_routing,
)
from espnet2_lamer.layers.inspection import experts_off, parameter_report

__all__ = [
    "LamerConfig",
    "LamerFeedForward",
    "LoRAExpertLinear",
    "Router",
    "add_lamer",
    "experts_off",
    "load_balancing_loss",
    "parameter_report",
    "parse_allocation",
    "parse_ranks",
    "record_routing",
]
