"""A HuBERT, with or without LoRA experts, as a frozen extractor of L + 1 states."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from espnet2_lamer.convert.architecture import build_hubert
from espnet2_lamer.layers import LamerConfig, add_lamer


def hidden_states(
    wav2vec2: nn.Module, wavs: Tensor, lengths: Tensor | None, final_norm: bool
) -> tuple[list[Tensor], Tensor | None]:
    """Compute every state of a HuBERT, with or without experts, nothing masked.

    Args:
        wav2vec2: In eval mode.
        wavs: Waveforms ``[B, n]``, 16 kHz, not normalised.
        lengths: Valid samples ``[B]``; ``None`` means all. Group-norm models see the
            padding.
        final_norm: Whether the last state of a pre-norm model gets its LayerNorm.

    Returns:
        L + 1 tensors ``[B, T, D]`` and the valid frames ``[B]`` (``None`` without
        ``lengths``).
    """
    features, frames = wav2vec2.feature_extractor(wavs, lengths)
    x, attention_mask = wav2vec2.encoder._preprocess(features, frames)
    transformer = wav2vec2.encoder.transformer
    x = transformer._preprocess(x)
    states = [x]
    for layer in transformer.layers:
        x, _ = layer(x, attention_mask)
        states.append(x)
    # torchaudio stores the negation: this is the pre-norm stack.
    if final_norm and not transformer.layer_norm_first:
        states[-1] = transformer.layer_norm(x)
    return states, frames


def one_by_one(
    extract: Callable[[Tensor, None], tuple[list[Tensor], Any]],
    wavs: Tensor,
    samples: Sequence[int],
) -> tuple[list[Tensor], Tensor]:
    """Compute every state of each utterance alone, so that no frame sees padding.

    Args:
        extract: Gives the L + 1 states of waveforms without padding.
        wavs: Waveforms ``[B, n]``.
        samples: Valid samples of each.

    Returns:
        L + 1 tensors ``[B, T, D]``, zero where padded, and the valid frames ``[B]``.
    """
    rows = [
        extract(wav[None, :count], None)[0]
        for wav, count in zip(wavs, samples, strict=True)
    ]
    states = [
        pad_sequence([state[0] for state in same], batch_first=True)
        for same in zip(*rows, strict=True)
    ]
    frames = [row[0].shape[1] for row in rows]
    return states, torch.tensor(frames, device=wavs.device)


class Upstream(nn.Module):
    """HuBERT with or without LoRA experts, waveform in, every layer's state out.

    States: 0 is the transformer's input after the positional convolution, k the output
    of block k (Hugging Face ``hidden_states[k]``, S3PRL index k). With ``final_norm``
    the last state of a pre-norm model is taken after the final LayerNorm, as S3PRL
    does.

    Always in eval mode, whatever ``train()`` says, and without gradients.

    Args:
        wav2vec2: The backbone, with ``architecture`` as attribute.
        lamer: Options of its experts, or ``None``.
        final_norm: See above.
    """

    def __init__(
        self,
        wav2vec2: nn.Module,
        lamer: dict[str, Any] | None = None,
        final_norm: bool = True,
    ) -> None:
        super().__init__()
        self.wav2vec2 = wav2vec2.eval().requires_grad_(False)
        self.lamer = lamer
        self.final_norm = final_norm
        self.num_layers: int = wav2vec2.architecture["encoder_num_layers"]
        self.dim: int = wav2vec2.architecture["encoder_embed_dim"]
        self.eval()

    def train(self, mode: bool = True) -> "Upstream":
        """Stay in eval mode: a frozen upstream must not drop anything."""
        return super().train(False)

    @torch.no_grad()
    def extract_features(
        self, wavs: Tensor, lengths: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor | None]:
        """Compute all states.

        Args:
            wavs: Waveforms ``[B, n]``, 16 kHz, not normalised.
            lengths: Valid samples ``[B]``; ``None`` means all.

        Returns:
            L + 1 tensors ``[B, T, D]`` and the valid frames ``[B]`` (``None`` without
            ``lengths``). Group-norm models run one utterance at a time, since their
            statistics would see the padding.
        """
        mixed = lengths is not None and bool((lengths != wavs.shape[1]).any())
        if self.wav2vec2.extractor_mode == "group_norm" and mixed:
            return one_by_one(self.extract_features, wavs, lengths.tolist())
        return hidden_states(self.wav2vec2, wavs, lengths, self.final_norm)

    def architecture(self) -> dict[str, Any]:
        """Describe the model in plain values; see :meth:`from_architecture`."""
        return {
            "hubert": dict(self.wav2vec2.architecture),
            "lamer": self.lamer,
            "final_norm": self.final_norm,
        }

    @classmethod
    def from_architecture(cls, architecture: dict[str, Any]) -> "Upstream":
        """Build the model with random weights, to be filled by ``load_state_dict``."""
        wav2vec2 = build_hubert(architecture["hubert"])
        if architecture["lamer"] is not None:
            add_lamer(wav2vec2, LamerConfig(**architecture["lamer"]))
        return cls(wav2vec2, architecture["lamer"], architecture["final_norm"])
