"""MoLE: shared shallow layers that combine all experts, and what they identify."""

import torch
from torch import Tensor, nn

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.whisper.config import WhisperLoraConfig
from espnet2_lamer.whisper.lora import Mixture


class ExpertCombination(nn.Module):
    """The weights with which each of the first L1 layers combines N experts.

    Args:
        config: Languages, L1, reading and kind of the weights.
        num_layers: Layers of the encoder.

    Raises:
        RecipeError: L1 is more than there are layers.
    """

    def __init__(self, config: WhisperLoraConfig, num_layers: int) -> None:
        super().__init__()
        if config.shared_layers > num_layers:
            raise RecipeError(
                f"lora.shared_layers: found {config.shared_layers}, expected at most "
                f"{num_layers}, the encoder's layers"
            )
        self.languages = config.languages
        self.merged = config.combination == "merged"
        self.softmax = config.combination_weights == "softmax"
        start = 0.0 if self.softmax else 1.0 / len(self.languages)
        self.logits = nn.Parameter(
            torch.full((config.shared_layers, len(self.languages)), start)
        )

    def weights(self) -> Tensor:
        """Return the weights a ``[L1, N]``."""
        return self.logits.softmax(-1) if self.softmax else self.logits

    def mixtures(self) -> list[Mixture]:
        """Return what each of the shared layers uses."""
        return [Mixture(self.languages, row, self.merged) for row in self.weights()]


class LanguageIdentifier(nn.Sequential):
    """A two-layer MLP on the mean of an utterance's real frames.

    Args:
        dim: Width D of the encoder.
        hidden: Width of the hidden layer.
        num_languages: N.
    """

    def __init__(self, dim: int, hidden: int, num_languages: int) -> None:
        super().__init__(
            nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, num_languages)
        )

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """Score the languages.

        Args:
            x: Output of layer L1 ``[B, T, D]``.
            real: Frames that are not padding ``[B, T]``.

        Returns:
            Logits ``[B, N]`` in float32.
        """
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self[0].weight.dtype).masked_fill(~real[..., None], 0.0)
            mean = x.sum(1) / real.sum(1, keepdim=True)
            return super().forward(mean).float()
