"""What a head writes: token lists, tags of languages, SentencePiece models."""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from espnet2_lamer.compat import before_espnet
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.benchmark_sets import (
    MADE_BY,
    PLAIN_TEXT,
    RAW_TEXT,
    RECORD,
)
from espnet2_lamer.evaluation.text_settings import TextSettings
from espnet2_lamer.evaluation.text_units import PLAIN_UNITS
from espnet2_lamer.fileio.atomic import atomic_path, write_text
from espnet2_lamer.fileio.datadir import read_table

#: What a head writes: the parts of each target.
TARGETS = {"text": ("text",), "lang": ("lang",), "lang_text": ("lang", "text")}
#: Name of the SentencePiece model in an experiment's ``data`` and ``final``.
BPE_MODEL = "bpe.model"


@dataclass(frozen=True)
class Vocabulary:
    """How texts become tokens: ESPnet's token type, token list (blank first).

    ``bpe`` has a SentencePiece model, ``char`` a file of tags that are one token each.
    """

    token_type: str
    tokens: tuple[str, ...]
    bpe_model: Path | None = None
    nlsyms: Path | None = None

    def tokenizer(self):
        """Build ESPnet's tokenizer."""
        before_espnet()
        from espnet2.text.build_tokenizer import build_tokenizer

        return build_tokenizer(
            token_type=self.token_type,
            bpemodel=None if self.bpe_model is None else str(self.bpe_model),
            non_linguistic_symbols=None if self.nlsyms is None else str(self.nlsyms),
        )

    def options(self, directory: Path) -> list[str]:
        """Return ESPnet's options; the token list is in ``directory``."""
        options = ["--token_type", self.token_type]
        options += ["--token_list", str(directory / "tokens.txt")]
        if self.bpe_model is not None:
            options += ["--bpemodel", str(self.bpe_model)]
        if self.nlsyms is not None:
            options += ["--non_linguistic_symbols", str(self.nlsyms)]
        return options


def token_type_of(unit: str) -> str:
    """Return ESPnet's token type of a unit."""
    return unit if unit in ("char", "bpe") else "word"


def read_targets(
    directory: Path,
    target: str,
    unit: str,
    settings: TextSettings | None = None,
    alone: bool = False,
) -> dict[str, str]:
    """Return what a head shall write for every utterance of a data directory.

    ``target`` is ``text``, ``lang``: the tag of the language, such as ``[eng]``, or
    ``lang_text``: both. The order is that of ``wav.scp``. Other ``settings`` than
    ML-SUPERB's are applied to the transcripts as they were written, ``text.raw``. Of a
    head for the set's language ``alone`` the text is that of the monolingual script.

    Raises:
        RecipeError: A file is missing, or an utterance of ``wav.scp`` has none.
    """
    plain = unit in PLAIN_UNITS
    # Sets made by hand may have nothing but `text`.
    plain = plain and (directory / PLAIN_TEXT).is_file()
    plain = plain and not (alone and _unit_of(directory) == unit)
    files = {"lang": "utt2lang", "text": PLAIN_TEXT if plain else "text"}
    settings = settings or TextSettings()
    if not settings.is_default and target != "lang":
        settings.check_unit(unit)
        files["text"] = RAW_TEXT
    utts = read_table(directory / "wav.scp", MADE_BY)
    targets = dict.fromkeys(utts, "")
    for what in TARGETS[target]:
        path = directory / files[what]
        table = read_table(path, MADE_BY)
        for utt in utts:
            if not table.get(utt):
                raise RecipeError(
                    f"{path}: {utt}: no {what}; every utterance of wav.scp needs one: "
                    "drop it or make the evaluation sets anew"
                )
            part = f"[{table[utt]}]" if what == "lang" else table[utt]
            if what == "text" and not settings.is_default:
                part = settings.apply(part)
            targets[utt] = f"{targets[utt]} {part}".lstrip()
    return targets


def _unit_of(directory: Path) -> str:
    path = directory / RECORD
    text = path.read_text(encoding="utf-8") if path.is_file() else "{}"
    return json.loads(text).get("unit", "")


def read_all_targets(
    directories: Sequence[Path],
    target: str,
    unit: str,
    settings: TextSettings | None = None,
    alone: bool = False,
) -> dict[str, str]:
    """Return :func:`read_targets` of several directories together.

    Raises:
        RecipeError: See there, or an utterance is in two of them.
    """
    targets: dict[str, str] = {}
    for directory in directories:
        found = read_targets(directory, target, unit, settings, alone)
        twice = sorted(found.keys() & targets.keys())
        if twice:
            raise RecipeError(
                f"{directory}/wav.scp: {twice[0]} is also in another of these sets; "
                "utterance ids must be unique"
            )
        targets |= found
    return targets


def build_vocabulary(
    texts: Sequence[str],
    token_type: str,
    directory: Path,
    tags: Sequence[str] = (),
    nbpe: int = 200,
) -> Vocabulary:
    """Make the vocabulary of a training set and write it.

    Args:
        texts: The training transcripts, and nothing else.
        token_type: ``char`` (a space becomes ``<space>``), ``word`` or ``bpe``.
        directory: Gets ``tokens.txt``, and ``nlsyms.txt`` or ``bpe.model`` if needed.
        nbpe: Size of a ``bpe`` vocabulary; lowered where the texts have fewer pieces.

    Raises:
        RecipeError: There is no text, or fewer pieces than characters.
    """
    if not any(text.strip() for text in texts):
        raise RecipeError(
            f"{directory}: no training text; see the evaluation sets' report"
        )
    if token_type == "bpe":
        return _build_bpe(texts, directory, tags, nbpe)
    nlsyms = None
    if tags and token_type == "char":
        nlsyms = directory / "nlsyms.txt"
        write_text(nlsyms, "".join(f"{tag}\n" for tag in tags))
    vocabulary = Vocabulary(token_type, (), nlsyms=nlsyms)
    tokenizer = vocabulary.tokenizer()
    counts = Counter(token for text in texts for token in tokenizer.text2tokens(text))
    ordered = sorted(counts, key=lambda token: (-counts[token], token))
    return replace(vocabulary, tokens=_write_tokens(ordered, directory))


def _write_tokens(ordered: Sequence[str], directory: Path) -> tuple[str, ...]:
    tokens = ("<blank>", "<unk>", *ordered, "<sos/eos>")
    write_text(directory / "tokens.txt", "".join(f"{token}\n" for token in tokens))
    return tokens


def _build_bpe(
    texts: Sequence[str], directory: Path, tags: Sequence[str], nbpe: int
) -> Vocabulary:
    """Train SentencePiece with ESPnet's settings (those of asr.sh)."""
    import sentencepiece

    model = directory / BPE_MODEL
    with atomic_path(model) as temporary:
        try:
            with open(temporary, "wb") as writer:
                sentencepiece.SentencePieceTrainer.train(
                    sentence_iterator=iter(texts),
                    model_writer=writer,
                    vocab_size=nbpe,
                    # Fewer pieces than asked for are no error in a small corpus.
                    hard_vocab_limit=False,
                    model_type="unigram",
                    character_coverage=1.0,
                    user_defined_symbols=list(tags),
                    minloglevel=2,
                )
        except RuntimeError as error:
            raise RecipeError(
                f"--nbpe {nbpe}: SentencePiece cannot make so few or so many pieces of "
                f"{len(texts)} training texts ({str(error).splitlines()[-1]})"
            ) from error
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
    names = [pieces.id_to_piece(index) for index in range(len(pieces))]
    # As ESPnet: its own <unk>, and no sentence marks, which CTC does not need.
    ordered = [n for n in names if n not in ("<unk>", "<s>", "</s>")]
    tokens = _write_tokens(ordered, directory)
    logging.info("%s: %d pieces of %d training texts", model, len(ordered), len(texts))
    return Vocabulary("bpe", tokens, bpe_model=model)


def check_targets(
    texts: Mapping[str, str], vocabulary: Vocabulary, where: str
) -> dict[str, int]:
    """Return the number of tokens of every text; raise RecipeError where it is 0."""
    tokenizer = vocabulary.tokenizer()
    lengths = {utt: len(tokenizer.text2tokens(text)) for utt, text in texts.items()}
    empty = [utt for utt, length in lengths.items() if not length]
    if empty:
        raise RecipeError(f"{where}: {empty[0]}: text without tokens")
    return lengths
