"""What Whisper's decoder is told before the text: language, task, no timestamps."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from whisper.tokenizer import Tokenizer, get_tokenizer

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.whisper.config import NEW_TOKEN, WhisperLoraConfig

BLANK = " "


@lru_cache(maxsize=4)
def tokenizer_of(n_vocab: int) -> Tokenizer:
    """Return openai-whisper's multilingual tokenizer for a vocabulary's size."""
    # As openai-whisper counts: text tokens, specials and timestamps, then languages.
    return get_tokenizer(True, num_languages=n_vocab - 51766)


class Prompts:
    """Prompts by language.

    New prompt vectors have ids from ``n_vocab`` on, in the order of the languages
    that have one; they are inputs only, never predicted.

    Args:
        config: Languages and their tokens.
        n_vocab: Size of Whisper's vocabulary.

    Raises:
        RecipeError: A language's token is not in the vocabulary.
    """

    def __init__(self, config: WhisperLoraConfig, n_vocab: int) -> None:
        self.config = config
        self.n_vocab = n_vocab
        self.tokenizer = tokenizer_of(n_vocab)
        self.new: dict[str, str] = {}
        for language in config.languages:
            code = self._code(language)
            self.code_id(code.removeprefix(NEW_TOKEN), f"language_tokens.{language}")
            if code.startswith(NEW_TOKEN):
                self.new[language] = code.removeprefix(NEW_TOKEN)
        if config.method == "student" and config.student_prompt != "none":
            self.code_id(config.student_prompt, "student_prompt")

    def _code(self, language: str) -> str:
        try:
            return self.config.token_of(language)
        except ValueError as error:
            raise RecipeError(str(error)) from error

    def code_id(self, code: str, key: str = "language_tokens") -> int:
        """Return the id of ``<|code|>``."""
        try:
            return self.tokenizer.to_language_token(code)
        except KeyError as error:
            raise RecipeError(
                f"lora.{key}: found {code!r}, which this Whisper has no token for; "
                "expected a code such as en or zh (models below large-v3 have no yue)"
            ) from error

    def language_id(self, language: str) -> int:
        """Return the id of a language's prompt token, ``n_vocab`` on for new ones."""
        if language in self.new:
            return self.n_vocab + list(self.new).index(language)
        if language not in self.config.languages:
            raise RecipeError(
                f"language: found {language!r}, expected one of lora.languages "
                f"({', '.join(self.config.languages)})"
            )
        return self.code_id(self._code(language))

    def spoken_id(self, language: str) -> int:
        """Return the id of the token that Whisper itself gives a language."""
        return self.code_id(self._code(language).removeprefix(NEW_TOKEN))

    def for_languages(self, languages: Sequence[str], device: torch.device) -> Tensor:
        """Return prompts with the language token, ``[B, 4]``."""
        rows = [self._row([self.language_id(name)]) for name in languages]
        return torch.tensor(rows, device=device)

    def for_student(self, batch: int, device: torch.device) -> Tensor:
        """Return ``batch`` equal prompts that do not depend on the language."""
        code = self.config.student_prompt
        row = self._row([] if code == "none" else [self.code_id(code)])
        return torch.tensor([row] * batch, device=device)

    def start(self, batch: int, device: torch.device) -> Tensor:
        """Return prompts ``[B, 1]`` after which Whisper predicts the language."""
        return torch.full((batch, 1), self.tokenizer.sot, device=device)

    def _row(self, language: list[int]) -> list[int]:
        t = self.tokenizer
        return [t.sot, *language, t.transcribe, t.no_timestamps]

    def suppress(self, logits: Tensor, first: bool) -> Tensor:
        """Exclude what is no text, as Whisper's own decoding does.

        Args:
            logits: Scores of the next token ``[..., V]``.
            first: Whether it is the first of the text, which is neither a space nor
                the end.

        Returns:
            The scores with special tokens and timestamps at minus infinity.
        """
        eot = self.tokenizer.eot
        logits = logits.clone()
        logits[..., eot + 1 :] = -torch.inf
        if first:
            logits[..., [*self.tokenizer.encode(BLANK), eot]] = -torch.inf
        return logits
