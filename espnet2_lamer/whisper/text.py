"""Whisper's tokens as text: the token list, and tokenizers for ESPnet.

ESPnet 202511 expects the tokenizer that openai-whisper had until March 2023; with
later ones its classes fail when they are built. Ours take their place, and leave the
prompt to the decoder, which knows each utterance's language.
"""

import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import write_text
from espnet2_lamer.whisper.prompts import tokenizer_of

MULTILINGUAL = "whisper_multilingual"
N_VOCAB = 51865  # text tokens have the same ids in every multilingual Whisper


@lru_cache(maxsize=1)
def _characters() -> dict[int, str]:
    """A printable character for each byte, as byte-level BPE vocabularies have it.

    Token lists are lines of text: bytes that are no visible Latin-1 character stand
    for characters from U+0100 on.
    """
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {
        byte: chr(256 + place) for place, byte in enumerate(rest)
    }


@lru_cache(maxsize=4)
def token_list(n_vocab: int = N_VOCAB) -> tuple[str, ...]:
    """Return a Whisper's tokens in printable form, in the order of their ids."""
    tokenizer = tokenizer_of(n_vocab)
    special = {number: token for token, number in tokenizer.special_tokens.items()}
    characters = _characters()
    return tuple(
        special.get(number)
        or "".join(
            characters[byte]
            for byte in tokenizer.encoding.decode_single_token_bytes(number)
        )
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


class WhisperTokenizer:
    """ESPnet's ``AbsTokenizer`` for ``token_type: whisper_multilingual``.

    Args:
        model_type: ``whisper_multilingual``.

    Raises:
        RecipeError: Another type.
    """

    def __init__(self, model_type: str, **unused: object) -> None:
        _check_type(model_type)

    def __repr__(self) -> str:
        return f"WhisperTokenizer({MULTILINGUAL})"

    def text2tokens(self, line: str) -> list[str]:
        """Split a transcript into printable tokens."""
        tokens = token_list()
        return [tokens[number] for number in encode_text(line)]

    def tokens2text(self, tokens: Iterable[str]) -> str:
        """Join printable tokens into text."""
        return decode_text(WhisperTokenIDConverter.tokens2ids(self, tokens))


class WhisperTokenIDConverter:
    """ESPnet's token-to-id converter for ``bpemodel: whisper_multilingual``.

    Args:
        model_type: ``whisper_multilingual``.

    Raises:
        RecipeError: Another type.
    """

    def __init__(self, model_type: str, **unused: object) -> None:
        _check_type(model_type)
        # What ESPnet's beam search starts from.
        sot = tokenizer_of(N_VOCAB).sot
        self.tokenizer = SimpleNamespace(sot_sequence_including_notimestamps=(sot,))

    def get_num_vocabulary_size(self) -> int:
        """Return the number of tokens."""
        return N_VOCAB

    def ids2tokens(self, integers: np.ndarray | Iterable[int]) -> list[str]:
        """Return printable tokens."""
        tokens = token_list()
        return [tokens[int(number)] for number in integers]

    def tokens2ids(self, tokens: Iterable[str]) -> list[int]:
        """Return ids of printable tokens."""
        numbers = _numbers()
        return [numbers[token] for token in tokens]


@lru_cache(maxsize=1)
def _numbers() -> dict[str, int]:
    return {token: number for number, token in enumerate(token_list())}


def _check_type(model_type: str) -> None:
    if model_type != MULTILINGUAL:
        raise RecipeError(
            f"bpemodel: found {model_type!r}, expected {MULTILINGUAL!r}, and the same "
            "for token_type"
        )


def replace_espnet_tokenizers() -> None:
    """Let ESPnet's two Whisper classes do what ours do; safe to call again.

    Their methods are replaced, not their names: ESPnet's modules have imported the
    classes already.
    """
    from espnet2.text.whisper_token_id_converter import OpenAIWhisperTokenIDConverter
    from espnet2.text.whisper_tokenizer import OpenAIWhisperTokenizer

    for theirs, ours in (
        (OpenAIWhisperTokenizer, WhisperTokenizer),
        (OpenAIWhisperTokenIDConverter, WhisperTokenIDConverter),
    ):
        for name, value in vars(ours).items():
            if callable(value):
                setattr(theirs, name, value)
