"""Layer-aware mixture of LoRA experts (Lamer-SSL, https://arxiv.org/abs/2602.12746)."""
