"""ESPnet decoder ``whisper_lora``: Whisper's decoder with routed LoRAs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import torch
from espnet2.asr.decoder.abs_decoder import AbsDecoder
from torch import Tensor, nn
from torch.nn import functional as F

from espnet2_lamer.compat import espnet_nets
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.layers.config import check_values
from espnet2_lamer.whisper.blocks import decoder_block, key_mask
from espnet2_lamer.whisper.cache import DecoderCache
from espnet2_lamer.whisper.encoder import Encoded
from espnet2_lamer.whisper.half import WhisperHalf
from espnet2_lamer.whisper.lora import Route, check_route
from espnet2_lamer.whisper.text import Prompts

BatchScorerInterface = espnet_nets("scorer_interface").BatchScorerInterface


@dataclass
class Decoded:
    """Logits ``[B, U, V]`` and, when asked for, every block's output ``[B, U, D]``."""

    logits: Tensor
    states: list[Tensor] = field(default_factory=list)


class WhisperLoraDecoder(WhisperHalf, AbsDecoder, BatchScorerInterface):
    """Whisper's decoder, which writes its prompt by itself.

    To ESPnet a hypothesis is ``<sos>``, text, ``<eos>``; the prompt with the
    utterance's language takes the place of ``<sos>`` inside. ``prompt`` and ``route``
    are those of the batch that was encoded last; the model sets them. ``whisper``,
    ``dims`` and ``lora`` are as in
    :class:`~espnet2_lamer.whisper.encoder.WhisperLoraEncoder`.

    Raises:
        RecipeError: The token list is not Whisper's.
    """

    def __init__(
        self,
        vocab_size: int,
        encoder_output_size: int,
        whisper: str | None = None,
        dims: Mapping[str, int] | None = None,
        lora: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.build("decoder", whisper, dims, lora)
        size = self.dims["n_vocab"]
        expected = f"Whisper's {size} tokens, as whisper.text.write_token_list writes"
        check_values("", ("token_list", vocab_size, vocab_size == size, expected))
        self.prompts = Prompts(self.config, vocab_size)
        embedding = self.whisper.token_embedding.weight.detach()
        self.new_tokens = nn.ParameterDict()
        for language in self.prompts.new:
            start = embedding[self.prompts.spoken[language]].clone()
            self.new_tokens[language] = nn.Parameter(start)
        self.prompt: Tensor | None = None
        self.route: Route | None = None

    @property
    def max_tokens(self) -> int:
        """Places for prompt and text."""
        return self.dims["n_text_ctx"]

    def decode(
        self,
        encoded: Encoded,
        prompt: Tensor,
        tokens: Tensor,
        keep_states: bool = False,
        cache: DecoderCache | None = None,
    ) -> Decoded:
        """Score the tokens that follow the prompt, with the encoder's route.

        The prompt's ids are ``[B, P]``, ``P = 0`` when a cache has them, those of the
        text so far ``[B, U]``. The cache of :meth:`new_cache` is filled here; with one
        the encoder's output may be that of one utterance ``[1, T, D]`` for all rows.

        Returns:
            Logits of position ``u`` predict token ``u``, so there is one more than
            tokens: ``[B, U + 1, V]`` (``[B, U, V]`` without prompt).

        Raises:
            RecipeError: A LoRA of the route is not there, or the text is too long.
        """
        memory, route = encoded.output, encoded.route
        check_route(self.whisper, route)
        past = cache.length if cache else 0
        if past:
            mask = cache.mask  # to ask lengths anew would make the host wait
        else:
            lengths = encoded.lengths
            mask = None if lengths is None else key_mask(lengths, memory.shape[1])
        if cache is not None:
            cache.mask = mask
        x = self._embed(prompt, tokens, past)
        skip = max(prompt.shape[1] - 1, 0)
        states = []
        kept_by_block = cache.blocks if cache else repeat(None)
        for block, kept in zip(self.whisper.blocks, kept_by_block):  # noqa: B905
            x = decoder_block(block, x, memory, mask, route, kept)
            if keep_states:
                states.append(x[:, skip:])
        return Decoded(self.project(x[:, skip:]), states)

    def new_cache(self, size: int | None = None) -> DecoderCache:
        """Return an empty cache for ``size`` tokens, or as many as Whisper takes."""
        return DecoderCache(len(self.whisper.blocks), size or self.max_tokens)

    def project(self, x: Tensor) -> Tensor:
        """Map the last block's output ``[B, U, D]`` to logits ``[B, U, V]``."""
        x = self.whisper.ln(x)
        return F.linear(x, self.whisper.token_embedding.weight.to(x.dtype)).float()

    def _embed(self, prompt: Tensor, tokens: Tensor, offset: int) -> Tensor:
        ids = torch.cat([prompt, tokens], 1)
        end = offset + ids.shape[1]
        if end > self.max_tokens:
            raise RecipeError(
                f"a text of {end - prompt.shape[1]} tokens: Whisper takes "
                f"{self.max_tokens} with its prompt of {prompt.shape[1]}; cut the "
                "utterance into segments"
            )
        x = self.whisper.token_embedding(ids.clamp(max=self.prompts.n_vocab - 1))
        if self.new_tokens:
            new = torch.stack(list(self.new_tokens.values()))
            place = ids - self.prompts.n_vocab
            vectors = new[place.clamp(0, len(new) - 1)]
            x = torch.where((place >= 0)[..., None], vectors, x)
        return x + self.whisper.positional_embedding[offset:end]

    def forward(
        self, hs_pad: Tensor, hlens: Tensor, ys_in_pad: Tensor, ys_in_lens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Score as ESPnet asks, with the prompts and the route of the last batch.

        Maps the encoder's output ``[B, T, D]``, its lengths ``[B]``, ``<sos>`` and text
        ``[B, U + 1]`` and their lengths to logits ``[B, U + 1, V]`` and those lengths.
        """
        encoded = Encoded(hs_pad, hlens, self.route)
        decoded = self.decode(encoded, self._prompt(hs_pad), ys_in_pad[:, 1:])
        return decoded.logits, ys_in_lens

    def _prompt(self, memory: Tensor) -> Tensor:
        if self.prompt is None:
            raise RecipeError("no prompt is set: encode with the model first")
        return self.prompt.to(memory.device).expand(memory.shape[0], -1)

    def score(self, ys: Tensor, state: Any, x: Tensor) -> tuple[Tensor, Any]:
        """Score the next token of one hypothesis ``[U + 1]`` on ``x [T, D]``."""
        scores, states = self.batch_score(ys[None], [state], x[None])
        return scores[0], states[0]

    @torch.no_grad()
    def batch_score(
        self, ys: Tensor, states: list[Any], xs: Tensor
    ) -> tuple[Tensor, list[Any]]:
        """Score the next token of the hypotheses of one utterance.

        Maps ``<sos>`` and text ``[H, U + 1]`` and the encoder's output, once per
        hypothesis ``[H, T, D]``, to log-probabilities ``[H, V]``; where no more text
        fits, only the end has one. States are ``None`` at first, then what the last
        call gave for the text without its last token: all hypotheses share a cache,
        whose rows are put in order. Where they do not, all of the text is computed.
        """
        prompt = self._prompt(xs)
        text = ys[:, 1:]
        first = not text.shape[1]
        if prompt.shape[1] + text.shape[1] > self.max_tokens:
            scores = xs.new_full((len(ys), self.prompts.n_vocab), -torch.inf)
            scores[:, self.prompts.tokenizer.eot] = 0.0
            return scores, [None] * len(ys)
        cache = _shared_cache(states, prompt.shape[1] + text.shape[1] - 1)
        if cache is None:
            cache = self.new_cache()
        else:
            rows = [state.row for state in states]
            if rows != [*range(len(rows))]:
                cache.reorder(rows, xs.device)
            prompt, text = prompt[:, :0], text[:, -1:]
        encoded = Encoded(xs[:1], None, self.route)
        logits = self.decode(encoded, prompt, text, cache=cache).logits[:, -1]
        logits = self.prompts.suppress(logits, first=first)
        places = [_Place(cache, row, cache.length) for row in range(len(ys))]
        return logits.log_softmax(-1), places


@dataclass(frozen=True)
class _Place:
    """Where a hypothesis is: its row of a cache that had this many tokens."""

    cache: DecoderCache
    row: int
    length: int


def _shared_cache(states: list[Any], length: int) -> DecoderCache | None:
    """Return the cache in which all hypotheses are, ``length`` tokens long; or None.

    Another hypothesis may have gone on from the same state: the cache is longer then.
    """
    caches = {id(state.cache): state.cache for state in states if state is not None}
    if len(caches) != 1 or None in states:
        return None
    (cache,) = caches.values()
    same = all(state.length == length for state in states)
    return cache if same and cache.length == length else None
