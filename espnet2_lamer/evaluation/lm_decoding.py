"""Decode test sets of a run with its language models, and say when words were said."""

import logging
from pathlib import Path

from espnet2_lamer.data.speech import read_speech
from espnet2_lamer.evaluation.head_decoding import write_hypotheses
from espnet2_lamer.evaluation.recogniser import Recogniser
from espnet2_lamer.evaluation.recogniser_files import RECOGNISER
from espnet2_lamer.evaluation.runs import WITH_LM, Run, made_from
from espnet2_lamer.evaluation.transcripts import ctm_lines
from espnet2_lamer.fileio.atomic import atomic_dir, write_json
from espnet2_lamer.fileio.datadir import read_table
from espnet2_lamer.fileio.hashing import sha256_file
from espnet2_lamer.fileio.prints import audio_digest


def decode_with_lm(run: Run, expdir: str | Path, device: str = "cpu") -> list[Path]:
    """Decode what ``decode_run`` did once more, with the run's language models.

    ``<run>/decode_<label>/with_lm/1best_recog`` gets ESPnet's files, ``hyp.ctm`` beside
    them the words with their times. Weights are those recorded with the model.

    Returns:
        The text files; those of the same model, record and audio are left as they are.
    """
    experiment = run.directory(expdir)
    final, recogniser, found = experiment / "final", None, []
    for label in run.tests:
        here = experiment / f"decode_{label}"
        wav_scp = here / "ref" / "wav.scp"
        result = here / WITH_LM / "1best_recog"
        inputs = {
            "model": sha256_file(final / "model.pth"),
            "record": sha256_file(final / RECOGNISER),
            "wav_scp": sha256_file(wav_scp),
            "audio": audio_digest([wav_scp]),
        }
        found.append(result / "text")
        if made_from(result / "inputs.json", inputs):
            logging.info("%s: already decoded", result)
            continue
        recogniser = recogniser or Recogniser(final, device)
        hypotheses, lines = {}, []
        for utt, path in read_table(wav_scp).items():
            transcript = recogniser(read_speech(utt, path))
            tokens = [token.text for token in transcript.tokens]
            ids = recogniser.converter.tokens2ids(tokens)
            columns = transcript.text, " ".join(tokens), " ".join(map(str, ids))
            hypotheses[utt] = columns
            lines += ctm_lines(utt, transcript.words)
        with atomic_dir(result) as directory:
            write_hypotheses(directory, hypotheses, recogniser.record)
            (directory / "hyp.ctm").write_text("".join(lines), encoding="utf-8")
            write_json(directory / "inputs.json", inputs)
    return found
