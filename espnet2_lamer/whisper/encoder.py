"""ESPnet encoder ``whisper_lora``: Whisper's encoder with routed LoRAs, and MoLE."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from espnet2.asr.encoder.abs_encoder import AbsEncoder
from torch import Tensor, nn
from torch.nn import functional as F
from whisper.audio import HOP_LENGTH, N_FFT, N_SAMPLES, mel_filters

from espnet2_lamer.asr.upstream import TooShortError
from espnet2_lamer.constants import SAMPLE_RATE
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.layers.config import check_values
from espnet2_lamer.whisper.blocks import encoder_block, key_mask, real_positions
from espnet2_lamer.whisper.config import WhisperLoraConfig
from espnet2_lamer.whisper.half import WhisperHalf
from espnet2_lamer.whisper.lora import Mixture, Route, check_route

DYNAMIC_RANGE = 8.0  # decades below an utterance's maximum that are kept


def log_mel(
    speech: Tensor,
    lengths: Tensor,
    n_mels: int,
    min_seconds: float = 0.0,
    trailing_silence: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Compute what Whisper computes, from each utterance's own samples alone.

    openai-whisper pads to 30 s with zeros. Its frames up to an utterance's end are
    these; what stands in a batch beyond an utterance's end changes nothing. Waveforms
    are ``[B, n]``, 16 kHz, their lengths ``[B]``, ``n_mels`` is 80 or 128; silence is
    that of :class:`WhisperLoraEncoder`, as far as 30 s allow.

    Returns:
        Spectrogram ``[B, n_mels, F]``, zero in padding, and frames ``[B]``,
        ``ceil(n / 160)``.

    Raises:
        RecipeError: An utterance is longer than Whisper's 30 s, or empty
            (``TooShortError``, with which ESPnet's decoding goes on).
    """
    if int(lengths.min()) < 1:
        raise TooShortError(
            "an utterance without audio (0 samples); leave it out", 0, 1
        )
    if int(lengths.max()) > N_SAMPLES:
        raise RecipeError(
            f"an utterance of {int(lengths.max()) / SAMPLE_RATE:.2f} s: Whisper takes "
            f"up to {N_SAMPLES // SAMPLE_RATE} s; cut it into segments"
        )
    speech = speech.masked_fill(~real_positions(lengths, speech.shape[1]), 0.0)
    lengths = lengths + round(trailing_silence * SAMPLE_RATE)
    lengths = lengths.clamp(round(min_seconds * SAMPLE_RATE), N_SAMPLES)
    longest = int(lengths.max())
    # Half a window of zeros at the end, as a padded utterance has: without it the
    # last frames would mirror the longest utterance and only pad the others.
    padded = F.pad(speech, (0, max(longest - speech.shape[1], 0) + N_FFT))
    frames = (lengths + HOP_LENGTH - 1) // HOP_LENGTH
    window = torch.hann_window(N_FFT, device=speech.device)
    with torch.autocast(speech.device.type, enabled=False):
        spectrum = torch.stft(
            padded.float(), N_FFT, HOP_LENGTH, window=window, return_complex=True
        )
        power = spectrum[..., : int(frames.max())].abs() ** 2
        mel = mel_filters(speech.device, n_mels) @ power
    log = mel.clamp(min=1e-10).log10()
    padding = ~real_positions(frames, log.shape[-1])[:, None]
    top = log.masked_fill(padding, -torch.inf).amax((1, 2), keepdim=True)
    log = (torch.maximum(log, top - DYNAMIC_RANGE) + 4.0) / 4.0
    return log.masked_fill(padding, 0.0), frames


class ExpertCombination(nn.Module):
    """The weights with which each of the first L1 layers combines N experts."""

    def __init__(self, config: WhisperLoraConfig, num_layers: int) -> None:
        super().__init__()
        shared = config.shared_layers
        most = f"at most {num_layers}, the encoder's layers"
        check_values("lora.", ("shared_layers", shared, shared <= num_layers, most))
        self.languages = config.languages
        self.merged = config.combination == "merged"
        self.softmax = config.combination_weights == "softmax"
        start = 0.0 if self.softmax else 1.0 / len(self.languages)
        shape = (config.shared_layers, len(self.languages))
        self.logits = nn.Parameter(torch.full(shape, start))

    def weights(self) -> Tensor:
        """Return the weights a ``[L1, N]``."""
        return self.logits.softmax(-1) if self.softmax else self.logits

    def mixtures(self) -> list[Mixture]:
        """Return what each of the shared layers uses."""
        return [Mixture(self.languages, row, self.merged) for row in self.weights()]


class LanguageIdentifier(nn.Sequential):
    """A two-layer MLP on the mean of an utterance's real frames."""

    def __init__(self, dim: int, hidden: int, num_languages: int) -> None:
        super().__init__(
            nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, num_languages)
        )

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """Map ``x [B, T, D]``, ``real [B, T]`` to float32 logits ``[B, N]``."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self[0].weight.dtype).masked_fill(~real[..., None], 0.0)
            mean = x.sum(1) / real.sum(1, keepdim=True)
            return super().forward(mean).float()


@dataclass
class Encoded:
    """Output ``[B, T, D]``, its lengths ``[B]`` (``None``: all are real), and more.

    ``route`` are the LoRAs that the layers above L1 used and that the decoder is to
    use, ``logits [B, N]`` the identifier's, ``states`` every block's output, if asked.
    """

    output: Tensor
    lengths: Tensor | None
    route: Route | None
    logits: Tensor | None = None
    states: list[Tensor] = field(default_factory=list)


class WhisperLoraEncoder(WhisperHalf, AbsEncoder):
    """Whisper's encoder on utterances of their own length, with LoRAs.

    The positional embedding is cut to the batch, nothing is padded to 30 s, and
    attention does not see padding: an utterance gives the same output in any batch.

    Args:
        input_size: Unused; the input is a waveform.
        whisper: Name or path of the weights; ``None`` takes random ones of ``dims``.
        dims: openai-whisper's ``ModelDimensions``, used without ``whisper``.
        lora: Fields of
            :class:`~espnet2_lamer.whisper.config.WhisperLoraConfig`; ``None`` is the
            frozen Whisper.
        min_seconds: Shorter utterances count as followed by silence; 30 is Whisper's
            own way.
        trailing_silence: Seconds of it that end every utterance. Whisper knows speech
            that is followed by silence only: without any, it often begins anew or
            repeats its last words instead of ending its text.
    """

    def __init__(
        self,
        input_size: int = 1,
        whisper: str | None = None,
        dims: Mapping[str, int] | None = None,
        lora: Mapping[str, Any] | None = None,
        min_seconds: float = 0.0,
        trailing_silence: float = 0.5,
    ) -> None:
        super().__init__()
        self.build("encoder", whisper, dims, lora)
        self.silence = min_seconds, trailing_silence
        self.combination = self.identifier = None
        config, dim = self.config, self.output_size()
        if config.method == "mole":
            self.combination = ExpertCombination(config, len(self.whisper.blocks))
            self.identifier = LanguageIdentifier(
                dim, config.identifier_hidden, len(config.languages)
            )

    def output_size(self) -> int:
        """Width D."""
        return self.dims["n_audio_state"]

    def forward(
        self, xs_pad: Tensor, ilens: Tensor, prev_states: Tensor | None = None
    ) -> tuple[Tensor, Tensor, None]:
        """Encode as ESPnet asks: without a route, see :meth:`encode`."""
        encoded = self.encode(xs_pad, ilens, None)
        return encoded.output, encoded.lengths, None

    def encode(
        self,
        speech: Tensor,
        lengths: Tensor,
        route: Route | None,
        keep_states: bool = False,
    ) -> Encoded:
        """Encode waveforms ``[B, n]``, 16 kHz, of ``lengths [B]`` with a route.

        Without a route it is the plain Whisper; with MoLE that of the identified
        language, by arg-max.

        Raises:
            RecipeError: A LoRA of the route is not there, or an utterance is empty or
                longer than 30 s.
        """
        check_route(self.whisper, route)
        x, lengths = self._embed(speech, lengths)
        mask = key_mask(lengths, x.shape[1])
        real = real_positions(lengths, x.shape[1])
        mixtures = [] if self.combination is None else self.combination.mixtures()
        encoded = Encoded(x, lengths, route)
        for index, block in enumerate(self.whisper.blocks):
            use = mixtures[index] if index < len(mixtures) else encoded.route
            x = encoder_block(block, x, mask, use)
            if keep_states:
                encoded.states.append(x)
            if index == len(mixtures) - 1:
                encoded.logits = self.identifier(x, real)
                if route is None:
                    likeliest = encoded.logits.argmax(-1).tolist()
                    names = [self.config.languages[i] for i in likeliest]
                    encoded.route = Route.of(names, x.device)
        encoded.output = self.whisper.ln_post(x).masked_fill(~real[..., None], 0.0)
        return encoded

    def _embed(self, speech: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Mel frames, convolutions, positions: ``[B, T, D]`` and lengths."""
        mel, frames = log_mel(speech, lengths, self.dims["n_mels"], *self.silence)
        position = self.whisper.positional_embedding
        x = F.gelu(self.whisper.conv1(mel.to(position.dtype)))
        # Where a batch goes on, the second convolution is to see the zeros that it
        # sees at the end of an utterance alone.
        padding = ~real_positions(frames, x.shape[-1])
        if padding.any():
            x = x.masked_fill(padding[:, None], 0.0)
        x = F.gelu(self.whisper.conv2(x)).permute(0, 2, 1)
        # Sums stay in the model's precision under autocast.
        return x.to(position.dtype) + position[: x.shape[1]], (frames + 1) // 2
