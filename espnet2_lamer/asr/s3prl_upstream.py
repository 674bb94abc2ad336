"""Any S3PRL upstream as a frozen feature extractor with the interface of ours."""

from typing import Any

import torch
from torch import Tensor, nn

from espnet2_lamer.asr.upstream import one_by_one
from espnet2_lamer.convert.load import load_s3prl
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.trust import split_s3prl


class S3prlUpstream(nn.Module):
    """An S3PRL upstream: waveform in, every hidden state out.

    Frames and states are those of ``s3prl.nn.S3PRLUpstream``, whose index k is ours.
    Utterances run one at a time: many upstreams let padding reach an utterance's
    frames. Always in eval mode and without gradients.

    Args:
        source: As :func:`~espnet2_lamer.convert.load.load_s3prl`.

    Raises:
        RecipeError: As there, or its states differ in width or frame rate.
    """

    def __init__(self, source: str) -> None:
        super().__init__()
        split_s3prl(source)  # before S3PRL takes seconds to import
        model = load_s3prl(source)
        widths, rates = set(model.hidden_sizes), set(model.downsample_rates)
        if len(widths) > 1 or len(rates) > 1:
            raise RecipeError(
                f"upstream {source!r}: its states have widths {sorted(widths)} and "
                f"frame shifts {sorted(rates)}; expected one of each"
            )
        self.source = source
        self.model = model.float().eval().requires_grad_(False)
        self.num_layers: int = model.num_layers - 1
        self.dim: int = model.hidden_sizes[0]
        self.hop: int = model.downsample_rates[0]

    def train(self, mode: bool = True) -> "S3prlUpstream":
        """Stay in eval mode: a frozen upstream must not drop anything."""
        return super().train(False)

    @torch.no_grad()
    def extract_features(
        self, wavs: Tensor, lengths: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """Compute all states.

        Args:
            wavs: Waveforms ``[B, n]``, 16 kHz, not normalised.
            lengths: Valid samples ``[B]``; ``None`` means all.

        Returns:
            States ``[B, T, D]`` and the valid frames ``[B]``, ``ceil(samples / hop)``.
        """
        counts = [wavs.shape[1]] * len(wavs) if lengths is None else lengths.tolist()
        return one_by_one(self._states, wavs, counts)

    def _states(self, wavs: Tensor, lengths: None) -> tuple[list[Tensor], Tensor]:
        # S3PRL wants the lengths in any case.
        return self.model(
            wavs, torch.full((len(wavs),), wavs.shape[1], device=wavs.device)
        )

    def architecture(self) -> dict[str, Any]:
        """Return what names the model: S3PRL builds it again from this."""
        return {"s3prl": self.source}
