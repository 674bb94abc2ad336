"""The options of LoRA on Whisper, as they stand in ``encoder_conf.lora``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.layers.config import check_values

METHODS = ("frozen", "full", "multilingual", "experts", "mole", "student")
# Names of Whisper's Linears in their parents; 0 and 2 are those of an MLP.
TARGETS = {
    "q,v": ("query", "value"),
    "q,k,v,o": ("query", "key", "value", "out"),
    "all": ("query", "key", "value", "out", "0", "2"),
}
CHOICES = (
    ("method", METHODS),
    ("targets", TARGETS),
    ("combination", ("merged", "summed")),
    ("combination_weights", ("softmax", "free")),
)
COUNTS = ("rank", "student_rank", "shared_layers", "identifier_hidden")
# Names of LoRAs that belong to no language.
MULTILINGUAL = "multilingual"
STUDENT = "student"
NEW_TOKEN = "new:"


@dataclass
class WhisperLoraConfig:
    """What is added to Whisper and what of it trains.

    "The paper" below is "Efficient Multilingual ASR Finetuning via LoRA Language
    Experts" (arXiv 2506.21555). Encoder and decoder get the same values.

    Args:
        method: ``"frozen"`` (Whisper as it is), ``"full"`` (every weight trains),
            ``"multilingual"`` (one LoRA for all languages), ``"experts"`` (one LoRA per
            language), ``"mole"`` (shared shallow layers, identifier, experts) or
            ``"student"`` (one LoRA distilled from the experts).
        languages: ISO 639-3 codes; their order is that of the data ``lang`` and of
            the identifier's classes. With ``"student"`` these are the teachers.
        train_language: The expert that trains with method ``"experts"``; ``None``
            trains none.
        rank: Rank r of an expert and of the multilingual LoRA (64 in the paper).
        alpha: LoRA scale is alpha / rank; ``None`` means 1 (the paper is silent).
        dropout: Dropout before A.
        targets: ``"q,v"``, ``"q,k,v,o"`` (every attention) or ``"all"`` (and both
            Linears of the MLPs); the paper is silent.
        encoder: Whether the encoder has LoRA.
        decoder: Whether the decoder has LoRA.
        student_rank: Rank of the student (256 in the paper).
        shared_layers: L1, how many encoder layers run the combined LoRA (20 of
            Whisper-medium's 24 in the paper).
        combination: ``"merged"``, (sum a_i B_i)(sum a_i A_i), the paper's wording, or
            ``"summed"``, sum a_i B_i A_i.
        combination_weights: Whether the weights a of a layer are a ``"softmax"`` of
            the parameters or the parameters themselves (``"free"``). Both start at
            1 / N.
        identifier_hidden: Width of the identifier's hidden layer.
        language_tokens: Whisper's code by language, e.g. ``{"yue": "zh"}``; a language
            that is left out has its two-letter code. ``"new:zh"`` is a new prompt
            vector that starts as ``<|zh|>`` and trains with the language's expert.
        student_prompt: The student's language token: ``"none"`` leaves it out, a code
            such as ``"en"`` is given whatever the language is.
        init_seed: Seed of the first A. It is the same A for every language, so that
            the merged combination of young experts is one of them and not noise.

    Raises:
        RecipeError: An option has an unknown or impossible value.
    """

    method: str = "experts"
    languages: Sequence[str] = ()
    train_language: str | None = None
    rank: int = 64
    alpha: float | None = None
    dropout: float = 0.0
    targets: str = "q,v"
    encoder: bool = True
    decoder: bool = True
    student_rank: int = 256
    shared_layers: int = 20
    combination: str = "merged"
    combination_weights: str = "softmax"
    identifier_hidden: int = 256
    language_tokens: Mapping[str, str] = field(default_factory=dict)
    student_prompt: str = "none"
    init_seed: int = 0

    def __post_init__(self) -> None:
        """Check every field, so that a typo fails before training."""
        self.languages = languages = tuple(self.languages)
        self.language_tokens = dict(self.language_tokens)
        different = len({*languages, MULTILINGUAL, STUDENT}) == len(languages) + 2
        named = different and all(name.isidentifier() for name in languages)
        enough = languages or self.method not in ("experts", "mole")
        shared = self.encoder or self.method != "mole"
        trained = self.train_language
        known = trained is None or (self.method == "experts" and trained in languages)
        unknown = set(self.language_tokens) - set(languages)
        checks = [
            *((k, getattr(self, k) in v, f"one of {list(v)}") for k, v in CHOICES),
            *((k, getattr(self, k) >= 1, "1 or more") for k in COUNTS),
            ("dropout", 0.0 <= self.dropout < 1.0, "[0, 1)"),
            ("languages", named, "different ISO 639-3 codes"),
            ("languages", enough, f"the experts' languages for method {self.method}"),
            ("encoder", shared, "true: the shared layers of method mole are there"),
            ("train_language", known, f"null, or one of {languages} for experts"),
            ("language_tokens", not (languages and unknown), f"some of {languages}"),
        ]
        check_values(
            "lora.", *((key, getattr(self, key), *check) for key, *check in checks)
        )

    @property
    def loras(self) -> dict[str, int]:
        """Ranks of the LoRAs that the method needs, by name."""
        if self.method == "multilingual":
            return {MULTILINGUAL: self.rank}
        if self.method in ("frozen", "full"):
            return {}
        ranks = dict.fromkeys(self.languages, self.rank)
        if self.method == "student":
            ranks[STUDENT] = self.student_rank
        return ranks

    @property
    def trained_lora(self) -> str | None:
        """Name of the LoRA that trains; none with ``mole``, ``frozen`` and ``full``."""
        return {
            "multilingual": MULTILINGUAL,
            "experts": self.train_language,
            "student": STUDENT,
        }.get(self.method)

    def token_of(self, language: str) -> str:
        """Whisper's code of a language, or ``new:CODE``; else a ``RecipeError``."""
        code = self.language_tokens.get(language) or DEFAULT_TOKENS.get(language)
        if code is None:
            raise RecipeError(
                f"lora.language_tokens: no entry for {language!r}; give Whisper's "
                "code, e.g. {yue: zh}, or new:CODE"
            )
        return code


# Languages of this project's recipes. Models below large-v3 have no Cantonese token.
DEFAULT_TOKENS = {"eng": "en", "cmn": "zh", "yue": "zh"}
