"""Batched greedy decoding with cached keys: the recipe's fast path."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from whisper.audio import SAMPLE_RATE

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.foreign import check_weights, clear_errors
from espnet2_lamer.precision import native_bf16
from espnet2_lamer.whisper.blocks import Cache
from espnet2_lamer.whisper.model import Routed, WhisperLoraModel
from espnet2_lamer.whisper.text import decode_text

# Bounds on a text by its audio: Cantonese reaches six characters a second, of up to
# three tokens each. A text that goes on longer repeats itself.
TOKENS_PER_SECOND = 20.0
TOKENS_MORE = 10


@dataclass
class Transcription:
    """What :func:`transcribe` returns.

    ``tokens`` are without prompt and end, ``texts`` their texts; ``languages`` what
    each utterance was routed to or prompted with, ``None`` with a student;
    ``posterior [B, N]`` the languages' probabilities where they were identified.
    """

    tokens: list[list[int]]
    texts: list[str]
    languages: list[str] | None
    posterior: Tensor | None


def load_model(
    config: str | Path, checkpoint: str | Path | None = None, device: str = "cpu"
) -> WhisperLoraModel:
    """Build an experiment's model.

    Args:
        config: ``config.yaml`` of an experiment, or of a packed model.
        checkpoint: One of its epoch files; ``None`` leaves it as it starts.
        device: Where to.

    Returns:
        The model, in eval mode; in float32 where it was trained in bf16 and the device
        only emulates that.

    Raises:
        RecipeError: The config is of another model, or does not fit the checkpoint.
    """
    from espnet2_lamer.tasks.asr import LamerASRTask, register_asr

    register_asr()
    if checkpoint is not None:
        check_weights(checkpoint)
    with clear_errors(config):
        model, _ = LamerASRTask.build_model_from_file(config, checkpoint, device)
    if not isinstance(model, WhisperLoraModel):
        raise RecipeError(f"{config}: model: expected whisper_lora")
    if model.amp_dtype is not None:
        native, reason = native_bf16(device)
        if not native:
            logging.info("%s: used in float32, not bf16: %s", config, reason)
            model.amp_dtype = None
    return model.eval()


@torch.no_grad()
def transcribe(
    model: WhisperLoraModel,
    speech: Tensor,
    speech_lengths: Tensor,
    languages: str | Sequence[str] | None = None,
    max_tokens: int | None = None,
) -> Transcription:
    """Write down what is said, greedily, a whole batch at a time.

    Args:
        model: In eval mode.
        speech: Waveforms ``[B, n]``, 16 kHz.
        speech_lengths: Valid samples ``[B]``.
        languages: One for all or one each; ``None`` identifies them.
        max_tokens: Most tokens of a text; bounded by the audio's length anyway.

    Raises:
        RecipeError: As :meth:`WhisperLoraModel.route`.
    """
    if isinstance(languages, str):
        languages = [languages] * len(speech)
    if languages is not None and len(languages) != len(speech):
        raise RecipeError(
            f"languages: found {len(languages)}, expected {len(speech)}, one for each "
            "utterance"
        )
    with model.autocast(speech.device):
        routed = model.route(speech, speech_lengths, languages)
    limits = speech_lengths / SAMPLE_RATE * TOKENS_PER_SECOND + TOKENS_MORE
    most = model.decoder.max_tokens - routed.prompt.shape[1]
    most = most if max_tokens is None else min(most, max_tokens)
    # In float32: autocast would cast every weight again for every token.
    tokens = _greedy(model, routed, limits.long().clamp(max=most))
    return Transcription(
        tokens,
        [decode_text(row) for row in tokens],
        routed.languages,
        routed.posterior,
    )


def _greedy(model: WhisperLoraModel, routed: Routed, limits: Tensor) -> list[list[int]]:
    decoder, encoded = model.decoder, routed.encoded
    prompts = decoder.prompts
    eot = prompts.tokenizer.eot
    cache = Cache()
    prompt, new = routed.prompt, routed.prompt[:, :0]
    rows: list[Tensor] = []
    done = limits <= 0
    while not done.all():
        decoded = decoder.decode(
            encoded.output, encoded.lengths, prompt, new, encoded.route, cache=cache
        )
        scores = prompts.suppress(decoded.logits[:, -1], first=not rows)
        best = scores.argmax(-1).masked_fill(done, eot)
        rows.append(best)
        done = done | (best == eot) | (len(rows) >= limits)
        prompt, new = routed.prompt[:, :0], best[:, None]
    if not rows:
        return [[] for _ in limits]
    return [
        [token for token in row if token != eot]
        for row in torch.stack(rows, 1).tolist()
    ]
