"""ESPnet encoder ``whisper_lora``: Whisper's encoder with routed LoRAs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from espnet2.asr.encoder.abs_encoder import AbsEncoder
from torch import Tensor
from torch.nn import functional as F

from espnet2_lamer.whisper.blocks import encoder_block, key_mask, real_positions
from espnet2_lamer.whisper.features import log_mel
from espnet2_lamer.whisper.half import WhisperHalf
from espnet2_lamer.whisper.lora import Route, check_route
from espnet2_lamer.whisper.mole import ExpertCombination, LanguageIdentifier


@dataclass
class Encoded:
    """What the encoder yields.

    ``output [B, T, D]`` and its ``lengths [B]``; ``states``, the output of every
    block, when asked for; with MoLE the identifier's ``logits [B, N]``; ``route``,
    the LoRAs that the layers above L1 used and that the decoder is to use.
    """

    output: Tensor
    lengths: Tensor
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
        self.silence = {
            "min_seconds": min_seconds,
            "trailing_silence": trailing_silence,
        }
        self.combination = self.identifier = None
        if self.config.identifies:
            self.combination = ExpertCombination(self.config, len(self.whisper.blocks))
            self.identifier = LanguageIdentifier(
                self.output_size(),
                self.config.identifier_hidden,
                len(self.config.languages),
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
        """Encode with a route.

        Args:
            speech: Waveforms ``[B, n]``, 16 kHz.
            lengths: Valid samples ``[B]``.
            route: LoRA by utterance. ``None`` is the plain Whisper; with MoLE it
                is the identified language, by arg-max.
            keep_states: Whether to return every block's output.

        Raises:
            RecipeError: A LoRA of the route is not there, or an utterance is empty or
                longer than 30 s.
        """
        if route is not None:
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
                    encoded.route = self._identified(encoded.logits)
        encoded.output = self.whisper.ln_post(x).masked_fill(~real[..., None], 0.0)
        return encoded

    def _identified(self, logits: Tensor) -> Route:
        names = [self.config.languages[i] for i in logits.argmax(-1).tolist()]
        return Route.of(names, logits.device)

    def _embed(self, speech: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Mel frames, convolutions, positions: ``[B, T, D]`` and lengths."""
        mel, frames = log_mel(speech, lengths, self.dims["n_mels"], **self.silence)
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
