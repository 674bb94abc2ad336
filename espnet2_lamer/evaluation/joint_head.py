"""A finished head of language and text, as ML-SUPERB 2.0's challenge calls it."""

import logging
from pathlib import Path

import numpy as np
import torch

from espnet2_lamer.asr.upstream import TooShortUttError
from espnet2_lamer.constants import SAMPLE_RATE
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.head_decoding import (
    GREEDY,
    greedy_prefix_search,
    language_tags,
    load_speech2text,
    most_probable_tag,
)
from espnet2_lamer.evaluation.mlsuperb2_tree import RENAMED
from espnet2_lamer.evaluation.scoring import LANGUAGE_TAG

#: Longer waveforms are cut at a quiet place, in seconds: their memory has a bound.
LONGEST = 60.0
# What is too short for a frame of the head is lengthened by silence.
_SHORTEST = 0.5
# Seconds of which the quietest is looked for.
_QUIET = 0.1


class JointHead:
    """A head of track ``asr_lid``: waveform in, language and text out.

    Args:
        directory: ``config.yaml`` and ``model.pth`` of ``train_head``.

    Raises:
        RecipeError: No head is there, or one that writes no languages.
    """

    def __init__(self, directory: str | Path, device: str = "cpu") -> None:
        speech2text = load_speech2text(directory, GREEDY, device)
        self.model = speech2text.asr_model
        self.converter = speech2text.converter
        self.tokenizer = speech2text.tokenizer
        self.device = device
        tokens = self.model.token_list
        self.tags = {tokens[i].strip("[]"): i for i in language_tags(tokens)}
        if not self.tags or len(self.tags) == len(tokens) - 3:
            what = "only languages" if self.tags else "no language"
            raise RecipeError(
                f"{directory}: a head that writes {what}; expected one of track "
                "asr_lid, whose texts begin with a tag such as [eng]"
            )

    @property
    def languages(self) -> list[str]:
        """ISO 639-3 codes of the languages that it tells apart."""
        return sorted(self.tags)

    def __call__(
        self, waveform: np.ndarray, true_lid: str | None = None
    ) -> tuple[str, str]:
        """Return the language (ISO 639-3) and the text of a waveform.

        The language is the first tag of the hypothesis, which stage 12 scores, or where
        it has none the most probable tag. A known language is taken for granted: the
        hypothesis begins with its tag.

        Args:
            waveform: Mono samples ``[n]`` at 16 kHz: floats of full scale 1, or
                integers, which are divided by theirs.
            true_lid: The language, where it is known (``eng`` or ``[eng]``). One that
                the head does not know is said and not used.

        Raises:
            ValueError: The waveform is not one channel of finite numbers.
        """
        speech = as_speech(waveform)
        given = (true_lid or "").strip().strip("[]")
        lang = RENAMED.get(given, given)
        if lang and lang not in self.tags:
            text = "true_lid %s: not among the %d languages of this head, so not used"
            logging.warning(text, true_lid, len(self.tags))
            lang = ""
        texts = []
        for piece in cut_quietly(speech):
            # One recording has one language: that of its beginning.
            lang, text = self._recognise(piece, lang)
            texts.append(text)
        return lang, " ".join(filter(None, texts))

    @torch.no_grad()
    def _recognise(self, speech: np.ndarray, lang: str) -> tuple[str, str]:
        log_probs = self._log_probs(speech)
        blank, eos = self.model.blank_id, self.model.eos
        first = [self.tags[lang]] if lang else []
        ids = greedy_prefix_search(log_probs.numpy(), blank, eos, first)
        line = self.tokenizer.tokens2text(self.converter.ids2tokens(ids)) or ""
        if not lang:
            known = [*self.tags.values()]
            tag = next((i for i in ids if i in known), None)
            if tag is None:
                tag = most_probable_tag(log_probs, known, blank)
            lang = self.model.token_list[tag].strip("[]")
        return lang, " ".join(LANGUAGE_TAG.sub(" ", line).split())

    def _log_probs(self, speech: np.ndarray) -> torch.Tensor:
        """Return log posteriors ``[T, V]``."""
        wav = torch.from_numpy(speech).to(self.device)
        lengths = torch.tensor([len(wav)], device=self.device)
        try:
            encoded, _ = self.model.encode(wav[None], lengths)
        except TooShortUttError:
            more = int(_SHORTEST * SAMPLE_RATE) - len(speech)
            return self._log_probs(np.pad(speech, (0, more)))
        return self.model.ctc.log_softmax(encoded)[0].float().cpu()


def as_speech(waveform: np.ndarray) -> np.ndarray:
    """Return float32 samples ``[n]`` of full scale 1.

    Raises:
        ValueError: It is not one channel of finite numbers.
    """
    speech = np.asarray(waveform)
    if speech.ndim != 1:
        raise ValueError(
            f"waveform: found the shape {speech.shape}, expected [samples] of one "
            "channel at 16 kHz"
        )
    if speech.dtype.kind == "i":
        speech = speech / -float(np.iinfo(speech.dtype).min)
    elif speech.dtype.kind != "f":
        raise ValueError(f"waveform: found {speech.dtype}, expected floats or integers")
    if not np.isfinite(speech).all():
        raise ValueError("waveform: NaN or infinite samples")
    # A copy: the caller's array stays as it is.
    return speech.astype(np.float32)


def cut_quietly(speech: np.ndarray, longest: float = LONGEST) -> list[np.ndarray]:
    """Cut samples into pieces of ``longest`` seconds at most, each at a quiet place.

    A cut is in the middle of the quietest tenth of a second of a piece's second half.
    """
    most, step = int(longest * SAMPLE_RATE), int(_QUIET * SAMPLE_RATE)
    pieces = []
    while len(speech) > most:
        blocks = speech[most // 2 : most]
        blocks = blocks[: len(blocks) // step * step].reshape(-1, step)
        quietest = int(np.square(blocks).mean(axis=1).argmin())
        cut = most // 2 + quietest * step + step // 2
        pieces.append(speech[:cut])
        speech = speech[cut:]
    return [*pieces, speech]
