"""A HuBERT, with or without experts, or any S3PRL upstream as a frozen extractor."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from espnet2_lamer.asr.waveforms import Waveforms, as_batch
from espnet2_lamer.compat import espnet_nets
from espnet2_lamer.constants import RECEPTIVE_FIELD, SAMPLE_RATE, STRIDE
from espnet2_lamer.convert.architecture import build_hubert, set_dropouts
from espnet2_lamer.convert.families import FAMILIES, family_of
from espnet2_lamer.convert.load import load_s3prl, read_dropouts
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.trust import split_s3prl
from espnet2_lamer.layers import LamerConfig, add_lamer, parse_allocation
from espnet2_lamer.layers.lid_routing import LidRoutingConfig, add_lid_routing

TooShortUttError = espnet_nets(
    "pytorch_backend.transformer.subsampling"
).TooShortUttError


class TooShortError(RecipeError, TooShortUttError):
    """Audio without a single frame; ESPnet's decoding gives it an empty text."""

    def __init__(
        self, message: str, actual_size: int = 0, limit: int = RECEPTIVE_FIELD
    ) -> None:
        super().__init__(message)
        self.actual_size, self.limit = actual_size, limit


def check_samples(samples: Sequence[int]) -> None:
    """Raise :class:`TooShortError` for the first utterance without a frame."""
    for row, count in enumerate(samples):
        if count < RECEPTIVE_FIELD:
            raise TooShortError(
                f"utterance {row + 1} of a batch of {len(samples)} has {count} "
                f"samples: the upstream needs at least {RECEPTIVE_FIELD} (25 ms at 16 "
                "kHz); leave it out",
                count,
            )


def hidden_states(
    wav2vec2: nn.Module,
    wavs: Tensor,
    lengths: Tensor | None,
    final_norm: bool,
    up_to: int | None = None,
) -> tuple[list[Tensor], Tensor | None]:
    """Compute every state of a HuBERT in eval mode, with or without experts, unmasked.

    Waveforms are ``[B, n]``, 16 kHz, not normalised, their lengths ``[B]``, ``None``
    where all are full. With ``final_norm`` the last state of a pre-norm model gets its
    LayerNorm. Blocks after state ``up_to`` are not computed.

    Returns:
        L + 1 tensors ``[B, T, D]``, or ``up_to`` + 1, and the valid frames ``[B]``
        (``None`` without ``lengths``).
    """
    features, frames = wav2vec2.feature_extractor(wavs, lengths)
    x, attention_mask = wav2vec2.encoder._preprocess(features, frames)
    transformer = wav2vec2.encoder.transformer
    x = transformer._preprocess(x)
    states, bias = [x], None
    for layer in transformer.layers[:up_to]:
        # The first block of a WavLM returns the position bias of all.
        x, bias = layer(x, attention_mask, bias)
        states.append(x)
    # torchaudio stores the negation: this is the pre-norm stack.
    whole = len(states) == len(transformer.layers) + 1
    if whole and final_norm and not transformer.layer_norm_first:
        states[-1] = transformer.layer_norm(x)
    return states, frames


def one_by_one(
    extract: Callable[[Tensor, None], tuple[list[Tensor], Any]],
    wavs: Tensor,
    samples: Sequence[int],
) -> tuple[list[Tensor], Tensor]:
    """Compute every state of each utterance alone, so that no frame sees padding.

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


# Of what every module of torch has, what users of a frozen one need.
_MODULE_NAMES = "cpu cuda eval load_state_dict parameters state_dict to".split()


class FrozenUpstream(nn.Module):
    """Waveform in, every layer's state out: without gradients, in eval mode.

    Attributes:
        drops: Whether ``train()`` switches dropout on, see :meth:`drop_in_training`.
        num_layers: L; there are L + 1 states.
        dim: Values of a state.
        hop: Samples from one state to the next.
        sampling_rate: Of the waveforms, in Hz.
        languages: ISO 639-3 codes of its continued training; empty where the file does
            not say.
    """

    num_layers: int
    dim: int
    hop: int = STRIDE
    sampling_rate: int = SAMPLE_RATE
    languages: tuple[str, ...] = ()
    drops: bool = False

    def train(self, mode: bool = True) -> "FrozenUpstream":
        """Stay in eval mode: a frozen upstream drops nothing unless it is asked to."""
        return super().train(mode and self.drops)

    def drop_in_training(self) -> bool:
        """Let ``train()`` switch on what the model dropped in its own training.

        So does a frozen upstream in ML-SUPERB's recipe, whose trainer puts the whole
        model in train mode. Returns whether there is anything that it drops.
        """
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.parameters()).device

    def __dir__(self) -> list[str]:
        """List the names that users need, without the hundred of every module."""
        hidden = {*dir(nn.Module), *self._parameters, *self._buffers} - {"__doc__"}
        own = [name for name in super().__dir__() if name not in hidden]
        return sorted([name for name in own if name[0] != "_"] + _MODULE_NAMES)

    def __repr__(self) -> str:
        """Describe the model in three lines; its modules print the network."""
        rate, per_second = self.sampling_rate, self.sampling_rate / self.hop
        spoken = " ".join(self.languages) or "not recorded"
        return (
            f"{type(self).__name__}: {self.summary}\n"
            f"  {rate} Hz in, {per_second:g} frames a second out, on {self.device}; "
            f"languages: {spoken}\n"
            f"  states, frames = model.extract_features(waveforms)  # "
            f"{self.num_layers + 1} states [B, T, {self.dim}]"
        )

    @property
    def summary(self) -> str:
        """What it is, in a few words."""
        return f"{self._what()}, {self.num_layers} layers of {self.dim} values"

    def _what(self) -> str:
        return "frozen upstream"


class Upstream(FrozenUpstream):
    """HuBERT with or without LoRA experts, whose options are ``lamer``.

    States: 0 is the transformer's input after the positional convolution, k the output
    of block k (Hugging Face ``hidden_states[k]``, S3PRL index k). With ``final_norm``
    the last state of a pre-norm model is taken after the final LayerNorm, as S3PRL
    does. ``wav2vec2`` has its ``architecture`` as attribute, and ``checkpoint`` is the
    plain model that it was loaded from, whose configuration knows its dropouts. Models
    that were trained by this package have those of that training, by default none.
    """

    def __init__(
        self,
        wav2vec2: nn.Module,
        lamer: dict[str, Any] | None = None,
        final_norm: bool = True,
        checkpoint: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        self.wav2vec2 = wav2vec2.eval().requires_grad_(False)
        self.lamer = lamer
        self.lid_routed: dict[str, Any] | None = None
        self.final_norm = final_norm
        self.num_layers = wav2vec2.architecture["encoder_num_layers"]
        self.dim = wav2vec2.architecture["encoder_embed_dim"]
        self.eval()

    @torch.no_grad()
    def extract_features(
        self,
        wavs: Waveforms,
        lengths: Tensor | Sequence[int] | None = None,
        up_to: int | None = None,
        sampling_rate: float | None = None,
    ) -> tuple[list[Tensor], Tensor | None]:
        """Compute all states, or those up to one, as :func:`hidden_states`.

        Models that hear padding run one utterance at a time: those with a group norm,
        whose statistics would see it, and data2vec's position embedding.

        Args:
            wavs: A waveform ``[n]``, a padded batch ``[B, n]``, or a list of waveforms
                of different lengths; tensors or numpy arrays, floats of full scale 1
                or int16, which is divided by 32768. One channel.
            lengths: Valid samples ``[B]`` of a batch.
            up_to: The last state that is wanted.
            sampling_rate: Of the waveforms, in Hz; they are converted to 16 kHz.

        Returns:
            L + 1 tensors ``[B, T, D]``, or ``up_to`` + 1, and the valid frames ``[B]``,
            ``None`` where all are.

        Raises:
            TooShortError: An utterance has fewer than 400 samples.
            RecipeError: As :func:`~espnet2_lamer.asr.waveforms.as_batch`.
        """
        like = next(self.parameters())
        level = not self.wav2vec2.normalize_waveform
        batch, lengths = as_batch(wavs, lengths, sampling_rate, like, level)
        return self.states_with_gradients(batch, lengths, up_to)

    def states_with_gradients(
        self, wavs: Tensor, lengths: Tensor | None = None, up_to: int | None = None
    ) -> tuple[list[Tensor], Tensor | None]:
        """Compute the states of a batch ``[B, n]``, for a model that trains."""
        counts = [wavs.shape[1]] * len(wavs) if lengths is None else lengths.tolist()
        check_samples(counts)
        mixed = any(count != wavs.shape[1] for count in counts)
        if self.wav2vec2.hears_padding and mixed:
            return one_by_one(
                partial(self.states_with_gradients, up_to=up_to), wavs, counts
            )
        return hidden_states(self.wav2vec2, wavs, lengths, self.final_norm, up_to)

    def drop_in_training(self) -> bool:
        """Let ``train()`` switch dropout on; layer drop and masks stay off."""
        if self.checkpoint is not None:
            set_dropouts(self.wav2vec2, read_dropouts(self.checkpoint))
        drops = [m.p for m in self.modules() if isinstance(m, nn.Dropout)]
        blocks = self.wav2vec2.encoder.transformer.layers
        drops += [block.attention.dropout for block in blocks]
        self.drops = any(drops)
        return self.drops

    def route_by_language(self, options: dict[str, Any]) -> None:
        """Add LoRA that the language routes, by options of ``LidRoutingConfig``.

        Raises:
            RecipeError: They do not fit, or the model has experts.
        """
        config = LidRoutingConfig(**options)
        try:
            add_lid_routing(self.wav2vec2, config)
        except ValueError as error:
            raise RecipeError(str(error)) from error
        self.lid_routed = vars(config)
        self.wav2vec2.eval().requires_grad_(False)

    def _what(self) -> str:
        family = FAMILIES[family_of(self.wav2vec2.architecture)].title
        if self.lamer is None:
            return family
        counts = parse_allocation(self.lamer["allocation"], self.num_layers)
        if max(counts) < 2:
            return f"{family} with one LoRA per layer" if any(counts) else family
        top_k = self.lamer.get("top_k", LamerConfig.top_k)
        used = "all" if top_k is None else f"top {top_k}"
        several = "-".join(map(str, sorted({*counts})))
        if self.lamer.get("merge", LamerConfig.merge) != "none":
            return f"{family} with {several} LoRA experts per layer, merged to one"
        return f"{family} with {used} of {several} LoRA experts per layer"

    def architecture(self) -> dict[str, Any]:
        """Describe the model in plain values; see :meth:`from_architecture`."""
        found = {
            "hubert": dict(self.wav2vec2.architecture),
            "lamer": self.lamer,
            "final_norm": self.final_norm,
        }
        # Others have the fingerprint that they had before there was this.
        return found | ({"lid_routed": self.lid_routed} if self.lid_routed else {})

    @classmethod
    def from_architecture(cls, architecture: dict[str, Any]) -> "Upstream":
        """Build the model with random weights, to be filled by ``load_state_dict``."""
        wav2vec2 = build_hubert(architecture["hubert"])
        if architecture["lamer"] is not None:
            add_lamer(wav2vec2, LamerConfig(**architecture["lamer"]))
        found = cls(wav2vec2, architecture["lamer"], architecture["final_norm"])
        if architecture.get("lid_routed"):
            found.route_by_language(architecture["lid_routed"])
        return found


class S3prlUpstream(FrozenUpstream):
    """An S3PRL upstream.

    Frames and states are those of ``s3prl.nn.S3PRLUpstream``, whose index k is ours.
    Utterances run one at a time: many upstreams let padding reach an utterance's
    frames.

    Raises:
        RecipeError: As :func:`~espnet2_lamer.convert.load.load_s3prl`, or its states
            differ in width or frame rate.
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
        self.num_layers = model.num_layers - 1
        self.dim = model.hidden_sizes[0]
        self.hop = model.downsample_rates[0]

    @torch.no_grad()
    def extract_features(
        self,
        wavs: Waveforms,
        lengths: Tensor | Sequence[int] | None = None,
        up_to: int | None = None,
        sampling_rate: float | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """Compute all states as :class:`Upstream`, ``ceil(samples / hop)`` frames.

        S3PRL computes all of them in any case; those up to ``up_to`` are returned.
        """
        like = next(self.parameters(), None)
        wavs, lengths = as_batch(wavs, lengths, sampling_rate, like, False)
        counts = [wavs.shape[1]] * len(wavs) if lengths is None else lengths.tolist()
        states, frames = one_by_one(self._states, wavs, counts)
        return states[: None if up_to is None else up_to + 1], frames

    def _states(self, wavs: Tensor, lengths: None) -> tuple[list[Tensor], Tensor]:
        # S3PRL wants the lengths in any case.
        counts = torch.full((len(wavs),), wavs.shape[1], device=wavs.device)
        return self.model(wavs, counts)

    def drop_in_training(self) -> bool:
        """Let ``train()`` reach S3PRL's model, whatever that does in train mode."""
        self.drops = True
        return True

    def architecture(self) -> dict[str, Any]:
        """Return what names the model: S3PRL builds it again from this."""
        return {"s3prl": self.source}

    def _what(self) -> str:
        return self.source
