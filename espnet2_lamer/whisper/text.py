"""Whisper's tokens: prompts, the token list, and tokenizers for ESPnet.

ESPnet 202511 expects the tokenizer that openai-whisper had until March 2023; with
later ones its classes fail when they are built. Ours take their place, and leave the
prompt to the decoder, which knows each utterance's language.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor
from whisper.tokenizer import LANGUAGES, Tokenizer, get_tokenizer

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import write_text
from espnet2_lamer.layers.config import check_values
from espnet2_lamer.whisper.config import NEW_TOKEN, WhisperLoraConfig

MULTILINGUAL = "whisper_multilingual"
# Of the smallest; text tokens have the same ids in every multilingual Whisper.
N_VOCAB = 51865


@lru_cache(maxsize=4)
def tokenizer_of(n_vocab: int) -> Tokenizer:
    """Return openai-whisper's multilingual tokenizer for a vocabulary's size."""
    # As openai-whisper counts: text tokens, specials and timestamps, then languages.
    return get_tokenizer(True, num_languages=n_vocab - 51766)


def language_codes(n_vocab: int) -> list[str]:
    """Return the languages that have a token, none in an English-only Whisper."""
    return list(LANGUAGES)[: max(n_vocab - 51766, 0)]


class Prompts:
    """Prompts by language, for a vocabulary of ``n_vocab`` tokens.

    New prompt vectors have ids from ``n_vocab`` on, in the order of the languages
    that have one; they are inputs only, never predicted.

    Raises:
        RecipeError: A language's token is not in the vocabulary.
    """

    def __init__(self, config: WhisperLoraConfig, n_vocab: int) -> None:
        self.n_vocab = n_vocab
        self.tokenizer = tokenizer_of(n_vocab)
        # Ids that Whisper itself gives the languages, and those of new vectors.
        self.spoken: dict[str, int] = {}
        self.new: dict[str, int] = {}
        for language in config.languages:
            code = config.token_of(language)
            known = code.removeprefix(NEW_TOKEN)
            self.spoken[language] = self._id(known, f"language_tokens.{language}")
            if code != known:
                self.new[language] = n_vocab + len(self.new)
        self._student: list[int] = []
        if config.method == "student" and config.student_prompt != "none":
            self._student = [self._id(config.student_prompt, "student_prompt")]

    def _id(self, code: str, key: str) -> int:
        try:
            return self.tokenizer.to_language_token(code)
        except KeyError as error:
            raise RecipeError(
                f"lora.{key}: found {code!r}, which this Whisper has no token for; "
                "expected a code such as en or zh (models below large-v3 have no yue)"
            ) from error

    def language_id(self, language: str) -> int:
        """Return the id of a language's prompt token, ``n_vocab`` on for new ones."""
        if language not in self.spoken:
            raise RecipeError(
                f"language: found {language!r}, expected one of lora.languages "
                f"({', '.join(self.spoken)})"
            )
        return self.new.get(language, self.spoken[language])

    def for_languages(self, languages: Sequence[str], device: torch.device) -> Tensor:
        """Return prompts with the language token, ``[B, 4]``."""
        return self._rows([[self.language_id(name)] for name in languages], device)

    def for_student(self, batch: int, device: torch.device) -> Tensor:
        """Return ``batch`` equal prompts that do not depend on the language."""
        return self._rows([self._student] * batch, device)

    def start(self, batch: int, device: torch.device) -> Tensor:
        """Return prompts ``[B, 1]`` after which Whisper predicts the language."""
        return torch.full((batch, 1), self.tokenizer.sot, device=device)

    def _rows(self, tokens: list[list[int]], device: torch.device) -> Tensor:
        t = self.tokenizer
        rows = [[t.sot, *row, t.transcribe, t.no_timestamps] for row in tokens]
        return torch.tensor(rows, device=device)

    def suppress(self, logits: Tensor, first: bool) -> Tensor:
        """Exclude what is no text, as Whisper's own decoding does.

        Special tokens and timestamps of ``logits [..., V]`` go to minus infinity, with
        the text's ``first`` token also a space and the end.
        """
        eot = self.tokenizer.eot
        logits = logits.clone()
        logits[..., eot + 1 :] = -torch.inf
        if first:
            logits[..., [*self.tokenizer.encode(" "), eot]] = -torch.inf
        return logits


def _characters() -> dict[int, str]:
    """A printable character for each byte, as byte-level BPE vocabularies have it.

    Token lists are lines of text: bytes that are no visible Latin-1 character stand
    for characters from U+0100 on.
    """
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = (chr(256 + place) for place in range(256))
    return {b: chr(b) if b in visible else next(hidden) for b in range(256)}


@lru_cache(maxsize=4)
def token_list(n_vocab: int = N_VOCAB) -> tuple[str, ...]:
    """Return a Whisper's tokens in printable form, in the order of their ids."""
    tokenizer = tokenizer_of(n_vocab)
    special = {number: token for token, number in tokenizer.special_tokens.items()}
    read, characters = tokenizer.encoding.decode_single_token_bytes, _characters()
    return tuple(
        special.get(number) or "".join(characters[byte] for byte in read(number))
        for number in range(n_vocab)
    )


def write_token_list(path: str | Path, n_vocab: int = N_VOCAB) -> None:
    """Write ESPnet's token list for a Whisper of ``n_vocab`` tokens."""
    write_text(path, "".join(f"{token}\n" for token in token_list(n_vocab)))


def encode_text(text: str) -> list[int]:
    """Return the tokens of a transcript.

    Whisper begins a transcript with a space where its script has spaces between
    words, and not in Chinese.
    """
    text = text.strip()
    spaced = bool(text) and unicodedata.category(text[0]) != "Lo"
    return tokenizer_of(N_VOCAB).encoding.encode_ordinary(" " * spaced + text)


def decode_text(tokens: Iterable[int]) -> str:
    """Return the text of tokens, special ones and outer spaces left out."""
    tokenizer = tokenizer_of(N_VOCAB)
    return tokenizer.decode([t for t in tokens if t < tokenizer.eot]).strip()


class WhisperTokens:
    """ESPnet's tokenizer and token-to-id converter for ``whisper_multilingual``."""

    def __init__(self, model_type: str, **unused: object) -> None:
        expected = f"{MULTILINGUAL!r}, and the same for token_type"
        right = model_type == MULTILINGUAL
        check_values("", ("bpemodel", model_type, right, expected))
        # What ESPnet's beam search starts from.
        sot = tokenizer_of(N_VOCAB).sot
        self.tokenizer = SimpleNamespace(sot_sequence_including_notimestamps=(sot,))

    def __repr__(self) -> str:
        return f"WhisperTokens({MULTILINGUAL})"

    def text2tokens(self, line: str) -> list[str]:
        """Split a transcript into printable tokens."""
        return self.ids2tokens(encode_text(line))

    def tokens2text(self, tokens: Iterable[str]) -> str:
        """Join printable tokens into text."""
        return decode_text(self.tokens2ids(tokens))

    def get_num_vocabulary_size(self) -> int:
        """Return the number of tokens."""
        return N_VOCAB

    def ids2tokens(self, integers: np.ndarray | Iterable[int]) -> list[str]:
        """Return printable tokens."""
        return [token_list()[int(number)] for number in integers]

    def tokens2ids(self, tokens: Iterable[str]) -> list[int]:
        """Return ids of printable tokens."""
        numbers = _numbers()
        return [numbers[token] for token in tokens]


@lru_cache(maxsize=1)
def _numbers() -> dict[str, int]:
    return {token: number for number, token in enumerate(token_list())}


def replace_espnet_tokenizers() -> None:
    """Let ESPnet's two Whisper classes do what ours does; safe to call again.

    Their methods are replaced, not their names: ESPnet's modules have imported the
    classes already.
    """
    from espnet2.text.whisper_token_id_converter import OpenAIWhisperTokenIDConverter
    from espnet2.text.whisper_tokenizer import OpenAIWhisperTokenizer

    for theirs in (OpenAIWhisperTokenizer, OpenAIWhisperTokenIDConverter):
        for name, value in vars(WhisperTokens).items():
            if callable(value):
                setattr(theirs, name, value)
