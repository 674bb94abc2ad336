"""A finished recogniser: waveform in, text with times out; long files in pieces."""

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from espnet2_lamer.asr.upstream import TooShortUttError
from espnet2_lamer.constants import SAMPLE_RATE, STRIDE
from espnet2_lamer.convert.packed import unpack_model
from espnet2_lamer.data.audio_decoding import Unusable, open_audio
from espnet2_lamer.data.recordings import cut
from espnet2_lamer.data.usable import to_speech
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.head_decoding import (
    GREEDY,
    greedy_prefix_search,
    load_speech2text,
)
from espnet2_lamer.evaluation.lm_search import (
    build_search,
    load_lm,
    read_decoding,
    search_tokens,
)
from espnet2_lamer.evaluation.recogniser_files import (
    NGRAM,
    RECOGNISER,
    lm_files,
    read_record,
)
from espnet2_lamer.evaluation.timestamps import (
    TimedWord,
    align,
    group_words,
    timed_tokens,
)
from espnet2_lamer.metrics.ctc import frame_seconds
from espnet2_lamer.metrics.ngram import read_arpa


@dataclass(frozen=True)
class Transcript:
    """What was recognised from ``start`` to ``end``, seconds of the recording."""

    start: float
    end: float
    text: str
    words: tuple[TimedWord, ...] = ()
    tokens: tuple[TimedWord, ...] = ()


class Recogniser:
    """A model of ``train_head``, its language models and its search.

    Args:
        source: Its experiment, the ``final`` folder of it, or its package.
        use_lm: Whether language models that come with it take part.
        changes: Keys of the decoding config that differ from the recorded ones.
        choose_weights: Whether the weights are still to be chosen: no search is built.

    Raises:
        RecipeError: No such model, or decoding keys without a language model.
    """

    def __init__(
        self,
        source: str | Path,
        device: str = "cpu",
        use_lm: bool = True,
        changes: Mapping[str, float] | None = None,
        choose_weights: bool = False,
    ) -> None:
        self.device = device
        with ExitStack() as stack:
            directory = _directory(Path(source), stack)
            speech2text = load_speech2text(directory, GREEDY, device)
            self.record = read_record(directory)
            self.model = speech2text.asr_model
            self.converter = speech2text.converter
            self.tokenizer = speech2text.tokenizer
            self.token_type = speech2text.asr_train_args.token_type
            files = lm_files(directory) if use_lm else None
            there = use_lm and (directory / NGRAM).is_file()
            self.ngram = read_arpa(directory / NGRAM) if there else None
            self.lm = load_lm(*files, device) if files else None
        self.search = None
        if choose_weights:
            return
        if self.ngram is not None or self.lm is not None:
            conf = {**(self.record.get("decoding") or {}), **(changes or {})}
            decoding = read_decoding(conf, Path(source) / RECOGNISER)
            self.search = build_search(self.model, decoding, self.ngram, self.lm)
        elif changes:
            raise RecipeError(
                f"{source}: found {', '.join(changes)}, but no language model takes "
                "part; leave them out, or train with --use_ngram true or --use_lm true"
            )

    @torch.no_grad()
    def encode(self, speech: np.ndarray) -> torch.Tensor | None:
        """Return the head's frames ``[1, T, D]`` of mono 16 kHz samples ``[n]``.

        None: the speech is too short for a single one.
        """
        wav = torch.as_tensor(speech, dtype=torch.float32, device=self.device)
        try:
            lengths = torch.tensor([len(wav)], device=self.device)
            return self.model.encode(wav[None], lengths)[0]
        except TooShortUttError:
            return None

    def _log_probs(self, encoded: torch.Tensor) -> np.ndarray:
        return self.model.ctc.log_softmax(encoded)[0].detach().float().cpu().numpy()

    def greedy(self, encoded: torch.Tensor) -> list[int]:
        """Return the token ids that CTC alone finds most probable."""
        log_probs = self._log_probs(encoded)
        return greedy_prefix_search(log_probs, self.model.blank_id, self.model.eos)

    def __call__(self, speech: np.ndarray) -> Transcript:
        """Recognise mono 16 kHz samples ``[n]``, float32, of 30 s at most, say.

        What is too short for a single frame has no text.
        """
        seconds = len(speech) / SAMPLE_RATE
        encoded = self.encode(speech)
        if encoded is None:
            return Transcript(0.0, seconds, "")
        if self.search is None:
            ids = self.greedy(encoded)
        else:
            with quiet():
                ids = search_tokens(self.search, encoded[0], self.model.eos)
        tokens = self.converter.ids2tokens(ids)
        text = self.tokenizer.tokens2text(tokens) or ""
        log_probs = self._log_probs(encoded)
        frames = len(log_probs)
        hop = STRIDE * max(1, round(len(speech) / STRIDE / frames))
        edges = frame_seconds(len(speech), frames, hop, SAMPLE_RATE)
        found = align(log_probs, ids, self.model.blank_id)
        timed = timed_tokens(found, tokens, edges)
        words = group_words(timed, self.token_type)
        return Transcript(0.0, seconds, text, tuple(words), tuple(timed))

    def transcribe(
        self, path: str, pieces: Sequence[tuple[float, float]]
    ) -> Iterator[Transcript]:
        """Recognise pieces of a recording in its own time, by their ends.

        ``path`` is of a file that libsndfile reads, pieces are seconds that do not
        overlap. The file is read once, and no more than a piece of it is in memory. A
        piece that is silent has no text.

        Raises:
            RecipeError: The recording or a piece cannot be read.
        """
        parts = {str(n): (float(a), float(b)) for n, (a, b) in enumerate(pieces)}
        try:
            with open_audio(path) as source:
                for name, part, samples in cut(source, parts, check=False):
                    start, end = parts[name]
                    if isinstance(samples, Unusable):
                        raise samples
                    try:
                        speech, _ = to_speech(samples, part)
                    except Unusable as error:
                        logging.warning("%s: %g to %g s: %s", path, start, end, error)
                        yield Transcript(start, end, "")
                        continue
                    found = self(speech)
                    yield Transcript(
                        start,
                        end,
                        found.text,
                        tuple(word.shifted(start) for word in found.words),
                        tuple(token.shifted(start) for token in found.tokens),
                    )
        except Unusable as error:
            raise RecipeError(f"{path}: {error}") from error


def _directory(source: Path, stack: ExitStack) -> Path:
    if source.is_file() and source.suffix == ".zip":
        scratch = stack.enter_context(tempfile.TemporaryDirectory())
        members: dict[str, Any] = unpack_model(source, scratch)
        if "asr_train_config" not in members:
            raise RecipeError(
                f"{source}: found a package of {', '.join(sorted(members))}, expected "
                "a recogniser's (asr_train_config): a pretrained model has no text"
            )
        return Path(members["asr_train_config"]).parent
    for directory in (source / "final", source):
        if (directory / "config.yaml").is_file():
            return directory
    raise RecipeError(
        f"{source}: no recogniser there; expected a package (.zip) or the experiment "
        "of one, with final/config.yaml"
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what ESPnet's search logs, four lines per utterance, to itself."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.INFO))
    try:
        yield
    finally:
        logging.disable(before)
