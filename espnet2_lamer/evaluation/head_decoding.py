"""Decode waveforms with a finished head, in this process."""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from espnet2_lamer.compat import before_espnet
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.feature_store import (
    Samples,
    count_samples,
    read_batches,
)
from espnet2_lamer.evaluation.recogniser_files import RECOGNISER, read_record
from espnet2_lamer.evaluation.runs import TARGETS, Run, made_from
from espnet2_lamer.evaluation.text_settings import TextSettings
from espnet2_lamer.evaluation.text_units import normalize_text
from espnet2_lamer.evaluation.tokens import BPE_MODEL, read_all_targets
from espnet2_lamer.fileio.atomic import atomic_dir, write_json
from espnet2_lamer.fileio.datadir import read_table, write_table
from espnet2_lamer.fileio.foreign import check_weights, read_yaml
from espnet2_lamer.fileio.hashing import sha256_file
from espnet2_lamer.fileio.prints import audio_digest

TAG = re.compile(r"\[[a-z_]+\]")
#: ML-SUPERB's setting.
GREEDY = {"beam_size": 1, "ctc_weight": 1.0, "lm_weight": 0.0}
#: Text, tokens and token ids, separated by spaces.
Hypothesis = tuple[str, str, str]
_LOG_ZERO = -1e10


def decode(
    final_dir: str | Path,
    wav_scp: str | Path,
    outputs: Mapping[Path, bool],
    config: str | Path,
    device: str = "cpu",
) -> list[Path]:
    """Decode every utterance and write ESPnet's ``1best_recog``.

    The model is loaded and its encoder run exactly as ``Speech2Text`` does, one
    utterance at a time; only the upstream runs in batches, whose features do not
    depend on the neighbours. With ML-SUPERB's setting (beam 1, CTC alone) the search
    is :func:`greedy_prefix_search`, which gives ``Speech2Text``'s text in a fraction
    of its time; any other setting runs ``Speech2Text``'s own search.

    Args:
        final_dir: ``config.yaml`` and ``model.pth`` of :func:`train_head`.
        outputs: Directories that get ``1best_recog/{text,token,token_int}``, and
            whether it holds the most probable language tag instead of a free
            hypothesis, see :func:`most_probable_tag`. The model runs once for all.

    Returns:
        The text files, left as they are when model, audio list and config are the same.
    """
    final_dir = Path(final_dir)
    for path in (final_dir / "config.yaml", final_dir / "model.pth"):
        if not path.is_file():
            raise RecipeError(f"{path}: file not found; training a head makes it")
    options = read_yaml(config)
    samples = count_samples(Path(wav_scp))
    common = {
        "model": sha256_file(final_dir / "model.pth"),
        "model_config": sha256_file(final_dir / "config.yaml"),
        "wav_scp": sha256_file(wav_scp),
        "audio": audio_digest([Path(wav_scp)]),
        "samples": sum(count for _, _, count in samples),
        "decode": options,
    }
    missing = {}
    for output, closed_set in outputs.items():
        result = output / "1best_recog"
        inputs = {**common, "closed_set": closed_set}
        if made_from(result / "inputs.json", inputs, [Path(wav_scp)]):
            logging.info("%s: already decoded", result)
        else:
            missing[result] = inputs
    if missing:
        closed_sets = [inputs["closed_set"] for inputs in missing.values()]
        found = decode_decisions(final_dir, samples, options, device, closed_sets)
        for (result, inputs), hypotheses in zip(missing.items(), found, strict=True):
            with atomic_dir(result) as directory:
                write_hypotheses(directory, hypotheses, read_record(final_dir))
                write_json(directory / "inputs.json", inputs)
    return [output / "1best_recog" / "text" for output in outputs]


def write_hypotheses(
    directory: Path, hypotheses: Mapping[str, Hypothesis], record: Mapping[str, Any]
) -> None:
    """Write ``text``, ``token`` and ``token_int``.

    ``text`` is what is scored. Where the model's ``record`` keeps punctuation or case
    it is normalised as the references are, and ``text.written`` is what was decoded.
    """
    for column, name in enumerate(("text", "token", "token_int")):
        table = {utt: hyp[column] for utt, hyp in hypotheses.items()}
        if name == "text":
            settings = TextSettings.read(record.get("text"), RECOGNISER)
            if not settings.is_default:
                write_table(directory / "text.written", table)
                table = {utt: normalize_text(text) for utt, text in table.items()}
        write_table(directory / name, table)


def decode_run(
    run: Run,
    expdir: str | Path,
    raw_dir: str | Path,
    config: str | Path,
    device: str = "cpu",
) -> dict[str, dict[str, Path]]:
    """Decode every test set of a run, and write the references beside.

    ``<run>/decode_<label>/ref/{wav.scp,text,utt2lang,utt2set}`` is the reference, its
    text in the run's unit, after the language tag for ``asr_lid`` and the tag alone for
    ``lid``. ``<run>/decode_<label>/<decision>/1best_recog/text`` is the hypothesis.

    Returns:
        Hypothesis file by test label and decision: ``free``, or for LID ``first_tag``
        (as the official script) and ``most_probable_tag``.

    Raises:
        RecipeError: A set, a text or the head is missing, or ids are not unique.
    """
    experiment = run.directory(expdir)
    decisions = {"free": False}
    if run.track == "lid":
        decisions = {"most_probable_tag": True, "first_tag": False}
    found: dict[str, dict[str, Path]] = {}
    for label, sets in run.tests.items():
        here = experiment / f"decode_{label}"
        _write_reference(run, [Path(raw_dir) / s for s in sets], here / "ref")
        texts = decode(
            experiment / "final",
            here / "ref" / "wav.scp",
            {here / decision: closed for decision, closed in decisions.items()},
            config,
            device,
        )
        found[label] = dict(zip(decisions, texts, strict=True))
    return found


def _write_reference(run: Run, directories: Sequence[Path], reference: Path) -> None:
    target, alone = TARGETS[run.track], run.track == "asr"
    texts = read_all_targets(directories, target, run.unit, alone=alone)
    tables = {"wav.scp": {}, "text": texts, "utt2lang": {}, "utt2set": {}}
    for directory in directories:
        audio = read_table(directory / "wav.scp")
        tables["wav.scp"] |= audio
        tables["utt2lang"] |= read_table(directory / "utt2lang")
        tables["utt2set"] |= dict.fromkeys(audio, directory.name)
    with atomic_dir(reference) as temporary:
        for name, table in tables.items():
            write_table(temporary / name, table)


def decode_utterances(
    final_dir: Path, samples: Samples, options: dict[str, Any], device: str = "cpu"
) -> dict[str, Hypothesis]:
    """Return text, tokens and token ids (space-separated) per utterance."""
    return decode_decisions(final_dir, samples, options, device, [False])[0]


def decode_decisions(
    final_dir: Path,
    samples: Samples,
    options: dict[str, Any],
    device: str,
    closed_sets: Sequence[bool],
) -> list[dict[str, Hypothesis]]:
    """Return hypotheses for each decision: free, or a tag of the closed set."""
    speech2text = load_speech2text(final_dir, options, device)
    model = speech2text.asr_model
    frontend, model.frontend = model.frontend, None
    greedy = options == GREEDY
    tags = language_tags(model.token_list)
    found: list[dict[str, Hypothesis]] = [{} for _ in closed_sets]
    progress = tqdm(
        total=sum(count for _, _, count in samples),
        unit="sample",
        unit_scale=True,
        desc="decoding",
        disable=None,
    )
    with torch.no_grad(), progress:
        for utts, wavs, lengths in read_batches(samples):
            feats, frames = frontend(wavs.to(device), lengths.to(device))
            for utt, feat, count in zip(utts, feats, frames.tolist(), strict=True):
                feat = feat[:count]
                if greedy or any(closed_sets):
                    length = torch.tensor([len(feat)])
                    encoded, _ = model.encode(feat[None], length)
                    log_probs = model.ctc.log_softmax(encoded)[0].cpu()
                for hypotheses, closed_set in zip(found, closed_sets, strict=True):
                    if closed_set:
                        ids = [most_probable_tag(log_probs, tags, model.blank_id)]
                        tokens = [model.token_list[ids[0]]]
                        text = tokens[0]
                    elif greedy:
                        ids = greedy_prefix_search(
                            log_probs.numpy(), model.blank_id, model.eos
                        )
                        tokens = speech2text.converter.ids2tokens(ids)
                        text = speech2text.tokenizer.tokens2text(tokens)
                    else:
                        text, tokens, ids, _ = speech2text(feat)[0]
                    columns = text or "", " ".join(tokens), " ".join(map(str, ids))
                    hypotheses[utt] = columns
            progress.update(int(lengths.sum()))
    return found


def load_speech2text(
    final_dir: str | Path, options: dict[str, Any], device: str = "cpu"
) -> Any:
    """Build ESPnet's ``Speech2Text`` from a finished head."""
    before_espnet()
    from espnet2.bin.asr_inference import Speech2Text

    from espnet2_lamer.tasks.asr import register_asr

    register_asr()
    pieces, weights = Path(final_dir) / BPE_MODEL, Path(final_dir) / "model.pth"
    check_weights(weights)
    return Speech2Text(
        asr_train_config=str(Path(final_dir) / "config.yaml"),
        # Beside the model, wherever that was moved.
        bpemodel=str(pieces) if pieces.is_file() else None,
        asr_model_file=str(weights),
        device=device,
        **options,
    )


def greedy_prefix_search(
    log_probs: np.ndarray,
    blank: int = 0,
    eos: int = -1,
    first: Sequence[int] = (),
) -> list[int]:
    """Grow the prefix of highest CTC prefix probability until ending is likelier.

    The same search as ``espnet2.bin.asr_inference`` with ``beam_size: 1`` and
    ``ctc_weight: 1.0`` (Watanabe et al., 2017, Algorithm 2), without its loop over
    frames for every token of the vocabulary: the score of a continuation needs only
    the forward variables of the prefix, so all continuations are one logsumexp, and
    the forward variables are updated for the chosen one alone. It is not arg-max
    decoding: it sums over alignments. One difference: ESPnet prints a stray
    ``<sos/eos>`` when a search ends at the very last frame; this one does not.

    ``log_probs`` are ``[T, V]`` log posteriors of one utterance, ``eos`` is the id of
    ``<sos/eos>``, whose score is that of ending here. The prefix begins with the tokens
    ``first``, whatever their probability. Returns token ids without blank and eos.
    """
    log_probs = log_probs.astype(np.float64)
    frames, vocabulary = log_probs.shape
    eos %= vocabulary
    blanks = log_probs[:, blank]
    # Log probability of the prefix with the last frame being its last token / blank.
    ends_token = np.full(frames, _LOG_ZERO)
    ends_blank = np.cumsum(blanks)
    prefix: list[int] = []
    # ESPnet allows one step per frame and ends a hypothesis at the last one.
    for _ in range(frames):
        total = np.logaddexp(ends_token, ends_blank)
        start = max(len(prefix), 1)
        # phi[t - 1]: the prefix is complete before frame t, where a token starts. A
        # repeated token needs a blank in between.
        scores = _logsumexp(total[start - 1 : -1, None] + log_probs[start:])
        if prefix:
            last = prefix[-1]
            scores[last] = _logsumexp(
                ends_blank[start - 1 : -1] + log_probs[start:, last]
            )
        else:
            scores = np.logaddexp(scores, log_probs[0])
        scores[blank] = _LOG_ZERO
        scores[eos] = total[-1]
        forced = len(prefix) < len(first)
        best = first[len(prefix)] if forced else int(scores.argmax())
        if best == eos:
            break
        phi = ends_blank if prefix and best == prefix[-1] else total
        token = log_probs[:, best]
        ends_token, ends_blank = np.full((2, frames), _LOG_ZERO)
        if not prefix:
            ends_token[0] = token[0]
        _extend(ends_token, phi, token, start)
        _extend(ends_blank, ends_token, blanks, start)
        prefix.append(best)
    return prefix


def _logsumexp(values: np.ndarray) -> np.ndarray:
    if len(values) == 0:
        return np.full(values.shape[1:], _LOG_ZERO)
    peak = values.max(axis=0)
    return peak + np.log(np.exp(values - peak).sum(axis=0))


def _extend(
    ends: np.ndarray, entering: np.ndarray, steps: np.ndarray, start: int
) -> None:
    """Continue log probabilities ``ends [T]`` from frame ``start``, in place.

    One ends at t that ended or was ``entering`` at t - 1, times the step's probability.
    """
    path = np.append(0.0, np.cumsum(steps[start:]))
    entered = np.logaddexp.accumulate((entering[start - 1 :] - path)[:-1])
    ends[start:] = path[1:] + np.logaddexp(ends[start - 1], entered)


def language_tags(tokens: Sequence[str]) -> list[int]:
    """Return the ids of the language tags (``[eng]``) in a token list."""
    return [index for index, token in enumerate(tokens) if TAG.fullmatch(token)]


def most_probable_tag(
    log_probs: torch.Tensor, tags: Sequence[int], blank: int = 0
) -> int:
    r"""Choose :math:`\arg\max_l P_{CTC}([l] \mid x)`.

    The official script takes the first tag of a free hypothesis, and a hypothesis
    without one is wrong. A head with little training knows the language long before
    its tag wins against blank; this decision shows what it knows. ``log_probs`` are
    ``[T, V]`` log posteriors of one utterance, ``tags`` the token ids to choose from,
    as sequences of one token.
    """
    count = len(tags)
    losses = torch.nn.functional.ctc_loss(
        log_probs.float()[:, None].expand(-1, count, -1),
        torch.tensor(tags)[:, None],
        torch.full((count,), len(log_probs)),
        torch.ones(count, dtype=torch.long),
        blank=blank,
        reduction="none",
    )
    return tags[int(losses.argmin())]
