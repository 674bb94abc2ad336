"""Waveform preparation of a HuBERT with LoRA experts."""

import numpy as np
from transformers import Wav2Vec2FeatureExtractor


class LamerHubertFeatureExtractor(Wav2Vec2FeatureExtractor):
    """Wav2Vec2's, with the epsilon that the model was trained with.

    Over an utterance's samples ``(x - mean) / sqrt(variance + 1e-5)``, as a LayerNorm;
    transformers uses 1e-7, which scales quiet speech differently.
    """

    @staticmethod
    def zero_mean_unit_var_norm(
        input_values: list[np.ndarray],
        attention_mask: list[np.ndarray] | None,
        padding_value: float = 0.0,
    ) -> list[np.ndarray]:
        """Normalise each waveform ``[n]``; samples after its own become padding."""
        if attention_mask is None:
            lengths = [len(x) for x in input_values]
        else:
            lengths = [int(np.sum(mask)) for mask in attention_mask]
        normalised = []
        for x, length in zip(input_values, lengths, strict=True):
            x = np.asarray(x, dtype=np.float32)
            real = x[:length].astype(np.float64)
            y = np.full_like(x, padding_value)
            y[:length] = (real - real.mean()) / np.sqrt(real.var() + 1e-5)
            normalised.append(y)
        return normalised
