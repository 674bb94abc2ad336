"""Batched greedy decoding with cached keys: the recipe's fast path."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from espnet2_lamer.constants import SAMPLE_RATE
from espnet2_lamer.layers.config import check_values
from espnet2_lamer.whisper.model import Routed, WhisperLoraModel
from espnet2_lamer.whisper.text import decode_text

# Bounds on a text by its audio: Cantonese reaches six characters a second, of up to
# three tokens each. A text that goes on longer repeats itself.
TOKENS_PER_SECOND = 20.0
TOKENS_MORE = 10


@dataclass
class Transcription:
    """Tokens without prompt and end, their texts, and the rest of :class:`Routed`."""

    tokens: list[list[int]]
    texts: list[str]
    languages: list[str] | None
    posterior: Tensor | None


@torch.no_grad()
def transcribe(
    model: WhisperLoraModel,
    speech: Tensor,
    speech_lengths: Tensor,
    languages: str | Sequence[str] | None = None,
    max_tokens: int | None = None,
) -> Transcription:
    """Write down what is said, greedily, a whole batch at a time.

    Waveforms are ``[B, n]``, 16 kHz, their lengths ``[B]``; ``languages`` is one for
    all or one each, ``None`` identifies them. A text has at most ``max_tokens``, and is
    bounded by the audio's length anyway.

    Raises:
        RecipeError: As :meth:`WhisperLoraModel.route`.
    """
    if isinstance(languages, str):
        languages = [languages] * len(speech)
    count = len(speech) if languages is None else len(languages)
    each = f"{len(speech)}, one for each utterance"
    check_values("", ("languages", count, count == len(speech), each))
    with model.autocast(speech.device):
        routed = model.route(speech, speech_lengths, languages)
    limits = speech_lengths / SAMPLE_RATE * TOKENS_PER_SECOND + TOKENS_MORE
    most = model.decoder.max_tokens - routed.prompt.shape[1]
    most = most if max_tokens is None else min(most, max_tokens)
    # In float32: autocast would cast every weight again for every token.
    tokens = _greedy(model, routed, limits.long().clamp(max=most))
    texts = [decode_text(row) for row in tokens]
    return Transcription(tokens, texts, routed.languages, routed.posterior)


def _greedy(model: WhisperLoraModel, routed: Routed, limits: Tensor) -> list[list[int]]:
    prompts = model.decoder.prompts
    eot = prompts.tokenizer.eot
    prompt, new = routed.prompt, routed.prompt[:, :0]
    rows: list[Tensor] = []
    done = limits <= 0
    # The last token of a text is not read any more.
    cache = model.decoder.new_cache(prompt.shape[1] + int(limits.max()))
    while not done.all():
        decoded = model.decoder.decode(routed.encoded, prompt, new, cache=cache)
        scores = prompts.suppress(decoded.logits[:, -1], first=not rows)
        best = scores.argmax(-1).masked_fill(done, eot)
        rows.append(best)
        done = done | (best == eot) | (len(rows) >= limits)
        prompt, new = routed.prompt[:, :0], best[:, None]
    if not rows:
        return [[] for _ in limits]
    found = torch.stack(rows, 1).tolist()
    return [[token for token in row if token != eot] for row in found]
