"""Weights in: HuBERT checkpoints of every format as one torchaudio model."""

from espnet2_lamer.convert.load import load_hubert

__all__ = ["load_hubert"]
