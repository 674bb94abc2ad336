"""Layer-aware mixture of LoRA experts (Lamer): routing, experts, insertion, counts.

Knows torch only; torchaudio is touched when :func:`add_lamer` is called.
"""

from espnet2_lamer.layers.allocation import parse_allocation
from espnet2_lamer.layers.balance import load_balancing_loss
from espnet2_lamer.layers.config import LamerConfig
from espnet2_lamer.layers.feed_forward import LamerFeedForward
from espnet2_lamer.layers.insertion import add_lamer
from espnet2_lamer.layers.lora import LoRAExpertLinear
from espnet2_lamer.layers.recording import record_routing
from espnet2_lamer.layers.report import parameter_report
from espnet2_lamer.layers.router import Router
from espnet2_lamer.layers.switch import experts_off

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
    "record_routing",
]
