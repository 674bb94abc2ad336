"""What is done to transcripts before a recogniser learns them: punctuation and case."""

import string
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.text_units import (
    PLAIN_UNITS,
    normalize_text,
    unify_spelling,
)

_CHOICES = {"punctuation": ("remove", "keep"), "case": ("upper", "lower", "keep")}


@dataclass(frozen=True)
class TextSettings:
    """The keys of ``text_conf``; the defaults are ML-SUPERB's.

    Attributes:
        punctuation: ``remove`` every character of Unicode's punctuation, or ``keep``
            it.
        case: ``upper``, ``lower``, or ``keep`` it as it was written.
    """

    punctuation: str = "remove"
    case: str = "upper"

    def __post_init__(self) -> None:
        """Check the values."""
        for key, known in _CHOICES.items():
            value = getattr(self, key)
            if value not in known:
                raise RecipeError(
                    f"text_conf.{key}: found {value!r}, expected one of "
                    f"{', '.join(known)}"
                )

    @classmethod
    def read(cls, conf: Mapping[str, Any] | None, source: object) -> "TextSettings":
        """Read ``text_conf``; another key of it raises ``RecipeError``."""
        conf = conf or {}
        known = [field.name for field in fields(cls)]
        unknown = sorted(conf.keys() - {*known}) if isinstance(conf, Mapping) else conf
        if unknown:
            raise RecipeError(
                f"{source}: text_conf: found {unknown}, expected a mapping with some "
                f"of {', '.join(known)}"
            )
        try:
            return cls(**conf)
        except RecipeError as error:
            raise RecipeError(f"{source}: {error}") from None

    @property
    def is_default(self) -> bool:
        """Whether this is ML-SUPERB's normalisation."""
        return self == TextSettings()

    def as_dict(self) -> dict[str, str]:
        """Return what is recorded with a model."""
        return asdict(self)

    def apply(self, text: str) -> str:
        """Normalise a transcript; runs of white space become one space."""
        if self.is_default:
            return normalize_text(text)
        text = unify_spelling(text)
        if self.punctuation == "remove":
            text = "".join(c for c in text if not _is_silent(c))
        text = {"upper": text.upper, "lower": text.lower, "keep": lambda: text}[
            self.case
        ]()
        return " ".join(text.split())

    def check_unit(self, unit: str) -> None:
        """Raise ``RecipeError`` for a unit whose texts have neither of the two."""
        if not self.is_default and unit not in PLAIN_UNITS:
            raise RecipeError(
                f"text_conf: found punctuation {self.punctuation}, case {self.case} "
                f"with unit {unit}, expected remove and upper: only "
                f"{', '.join(PLAIN_UNITS)} are spelt with punctuation and case"
            )


def _is_silent(char: str) -> bool:
    # What `normalize_text` deletes: ASCII's marks include symbols such as + and $.
    return unicodedata.category(char)[0] == "P" or char in string.punctuation
