r"""One language's plain HuBERT: experts averaged by their mean gates and merged.

A routed Linear computes :math:`W_0 x + s \sum_k g_k(x) B_k A_k x` with gates that
differ from frame to frame. With their mean over a language's frames in place of
:math:`g_k(x)` the sum is one matrix, :math:`W_0 + s \sum_k \bar g_k B_k A_k`: a model
without routers, exact with one expert per layer, an approximation otherwise. How good
it is gets measured on speech that the means were not taken from.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from espnet2_lamer.analysis.routing import RoutingStatistics
from espnet2_lamer.asr.upstream import Upstream
from espnet2_lamer.convert.architecture import build_hubert
from espnet2_lamer.convert.families import family_of
from espnet2_lamer.convert.huggingface import preprocessor_config, write_directory
from espnet2_lamer.data.audio_decoding import Unusable
from espnet2_lamer.data.speech import read_wav_scp
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.export.card import Origin, hugging_face_card
from espnet2_lamer.export.features import read_waveform
from espnet2_lamer.export.huggingface import describe, refuse_other_content
from espnet2_lamer.fileio.datadir import read_table
from espnet2_lamer.layers import LamerFeedForward, experts_off, record_routing
from espnet2_lamer.layers.config import LINEARS
from espnet2_lamer.layers.experts import LoRAExpertLinear

# Means settle long before; more speech only takes longer.
AT_MOST = 200

# Mean gates ``[N]`` by transformer layer (from 0) and router.
Gates = Mapping[tuple[int, str], Tensor]


@dataclass
class Deviation:
    """Relative error of every state against the routed model's.

    ``||dense - routed|| / ||routed||`` over the frames of ``utterances``; ``dense[k]``
    and ``base[k]`` (the same model with its experts left out) belong to state k.
    """

    utterances: int
    frames: int
    dense: list[float]
    base: list[float]

    def table(self) -> str:
        """A Markdown table."""
        lines = ["| state | dense | without experts |", "|---|---|---|"]
        for k, (dense, base) in enumerate(zip(self.dense, self.base, strict=True)):
            lines.append(f"| {k} | {dense:.4f} | {base:.4f} |")
        return "\n".join(lines)


def mean_gates(upstream: Upstream, speech: Iterable[Tensor], language: str) -> Gates:
    """Average every router's gates over waveforms ``[n]`` of a language, 16 kHz."""
    statistics = RoutingStatistics()
    for wave in speech:
        with record_routing(upstream) as record:
            _, frames = upstream.extract_features(wave[None], torch.tensor([len(wave)]))
        statistics.add(language, record, int(frames[0]))
    return {
        (row["layer"] - 1, row["router"]): torch.tensor(
            row["mean_gate"], dtype=torch.float64
        )
        for row in statistics.table()
    }


def merge_experts(upstream: Upstream, gates: Gates) -> Upstream:
    """Return a plain HuBERT with the experts, all beside Linears, inside these."""
    if upstream.lamer is None:
        raise RecipeError("dense: the model has no experts; export it with --kind hf")
    plain = build_hubert(upstream.wav2vec2.architecture)
    plain.mask_embedding = upstream.wav2vec2.mask_embedding
    state = upstream.wav2vec2.state_dict()
    state = {key: state[key] for key in state.keys() & plain.state_dict().keys()}
    for index, layer in enumerate(upstream.wav2vec2.encoder.transformer.layers):
        ffn = layer.feed_forward
        if not isinstance(ffn, LamerFeedForward):
            continue
        if ffn.ffn_experts is not None:
            raise RecipeError(
                "lamer.targets: found 'ffn', experts beside the whole feed-forward "
                "network, which no Linear can hold; dense needs 'intermediate_dense' "
                "and 'output_dense'"
            )
        for name in LINEARS:
            linear = getattr(ffn, name)
            if not isinstance(linear, LoRAExpertLinear):
                continue
            key = f"encoder.transformer.layers.{index}.feed_forward.{name}"
            router = "ffn" if ffn.one_router else name
            state[f"{key}.weight"] = _merged(linear, gates.get((index, router)))
            if linear.base.bias is not None:
                state[f"{key}.bias"] = linear.base.bias
    plain.load_state_dict(state)
    merged = Upstream(plain, None, upstream.final_norm)
    merged.languages = upstream.languages
    return merged


def mixed_for(upstream: Upstream, paths: Sequence[str], language: str) -> Upstream:
    """Average the experts over speech of a language in ``paths``, and merge them."""
    gates = mean_gates(upstream, _read(paths, "mean gates"), language)
    dense = merge_experts(upstream, gates)
    dense.languages = (language,)
    return dense


def _merged(linear: LoRAExpertLinear, gates: Tensor | None) -> Tensor:
    """``W_0 + s B diag(g) A`` in float64, rounded once; of merged experts their mean.

    That is ``W_0 + s (sum_k g_k B_k) (sum_k g_k A_k)``.
    """
    if gates is None:
        gates = torch.ones(linear.num_experts, dtype=torch.float64)
    gates = gates.to(linear.lora_B.device)
    a = linear.lora_A.double()  # [N, r, d_in]
    b = linear.lora_B.double().unflatten(1, a.shape[:2])  # [d_out, N, r]
    if linear.merges:
        update = torch.einsum("n,onr->or", gates, b) @ torch.tensordot(gates, a, 1)
    else:
        update = (b * gates[:, None]).flatten(1) @ a.flatten(0, 1)
    weight = linear.base.weight
    return (weight.double() + linear.scale * update).to(weight.dtype)


@torch.no_grad()
def deviation(routed: Upstream, dense: Upstream, speech: Iterable[Tensor]) -> Deviation:
    """Measure how far states are from the routed model's, on waveforms ``[n]``."""
    squares = torch.zeros(3, routed.num_layers + 1, dtype=torch.float64)
    utterances = frames = 0
    for wave in speech:
        expected, _ = routed.extract_features(wave[None])
        found, _ = dense.extract_features(wave[None])
        with experts_off(routed):
            base, _ = routed.extract_features(wave[None])
        for k, (x, y, z) in enumerate(zip(expected, found, base, strict=True)):
            parts = (part.double().square().sum() for part in (x, y - x, z - x))
            squares[:, k] += torch.stack([*parts])
        utterances += 1
        frames += expected[0].shape[1]
    relative = (squares[1:] / squares[0].clamp(min=1e-30)).sqrt()
    return Deviation(utterances, frames, relative[0].tolist(), relative[1].tolist())


def language_speech(
    wav_scp: str | Path, language: str, at_most: int = AT_MOST
) -> list[str]:
    """Choose paths of at most so many utterances of one language, evenly over the list.

    An ``utt2lang`` beside ``wav_scp`` says which are of the language (ISO 639-3);
    without one all are. None at all is refused.
    """
    paths = read_wav_scp(wav_scp)
    chosen = list(paths.values())
    utt2lang = Path(wav_scp).with_name("utt2lang")
    if utt2lang.is_file():
        languages = read_table(utt2lang)
        chosen = [p for utt, p in paths.items() if languages.get(utt) == language]
        if not chosen:
            known = sorted(set(languages.values()))
            raise RecipeError(
                f"{utt2lang}: no utterance of {wav_scp} is {language!r}; found {known}"
            )
    return chosen[:: max(1, -(-len(chosen) // at_most))]


def _read(paths: Sequence[str], title: str) -> Iterator[Tensor]:
    for path in tqdm(paths, desc=title, disable=None):
        try:
            yield torch.from_numpy(read_waveform(path))
        except Unusable as error:
            raise RecipeError(f"{path}: {error}; leave it out") from error


def write_dense(
    upstream: Upstream,
    directory: str | Path,
    language: str,
    paths: Sequence[str],
    origin: Origin | None = None,
) -> Deviation:
    """Write one language's plain model of the base's family; say how good it is.

    Gates are averaged over every other utterance of ``paths``; the deviation is
    measured on the rest (with a single utterance, on that one), printed, and written
    into ``README.md`` and ``config.json`` (``lamer_dense``).
    """
    refuse_other_content(Path(directory), "preprocessor_config.json")
    dense = mixed_for(upstream, paths[::2], language)
    measured = deviation(upstream, dense, _read(paths[1::2] or paths, "deviation"))
    table = measured.table()
    size = f"{measured.utterances} utterances of {language}, {measured.frames} frames"
    logging.info("relative error of every state, %s:\n%s", size, table)
    config, state = describe(dense)
    config["lamer_dense"] = {"language": language, **asdict(measured)}
    more = (
        f"The experts of a routed Lamer-SSL model, averaged by their mean gates over "
        f"{language} speech and merged into its feed-forward networks. For {language} "
        "only.",
        f"Relative error of every hidden state against the routed model's, over "
        f"{measured.utterances} other utterances ({measured.frames} frames), beside "
        "that of the routed model without its experts:",
        table,
    )
    family = family_of(dense.wav2vec2.architecture)
    card = hugging_face_card(directory, origin, None, family, more)
    preprocessor = preprocessor_config(dense.wav2vec2.architecture)
    write_directory(directory, config, preprocessor, state, {"README.md": card})
    return measured
