"""ESPnet model ``whisper_lora``: training of experts, MoLE and student; routing."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from espnet2.asr.espnet_model import ESPnetASRModel
from espnet2.torch_utils.device_funcs import force_gatherable
from torch import Tensor
from torch.nn import functional as F

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.layers.config import check_values
from espnet2_lamer.whisper.blocks import real_positions
from espnet2_lamer.whisper.config import MULTILINGUAL, STUDENT
from espnet2_lamer.whisper.decoder import WhisperLoraDecoder
from espnet2_lamer.whisper.encoder import Encoded, WhisperLoraEncoder
from espnet2_lamer.whisper.lora import Route, experts_hash, load_expert, train_only
from espnet2_lamer.whisper.student import (
    DISTILLATIONS,
    States,
    TeacherCache,
    cosine_loss,
    jensen_shannon,
    start_student,
)

IGNORE = -1


@dataclass
class Routed:
    """An encoded batch, ready for the decoder.

    ``languages`` are what each utterance was routed to and prompted with (``None``
    with a student), ``posterior [B, N]`` the identifier's, or Whisper's own where it
    was asked.
    """

    encoded: Encoded
    prompt: Tensor
    languages: list[str] | None
    posterior: Tensor | None


class WhisperLoraModel(ESPnetASRModel):
    """Whisper with LoRA language experts, MoLE or a distilled student.

    What trains follows from ``encoder_conf.lora.method``. The loss is the mean
    cross-entropy of a token, plus what the method adds.

    Args:
        experts: Files of trained experts by language, read when the model is built.
        language: The language of every utterance that ESPnet's inference encodes;
            ``None`` identifies it.
        lsm_weight: Label smoothing.
        identifier_weight: MoLE: w of ASR loss + w * cross-entropy of the identifier.
        distillation: Student: ``"layerwise"`` (hidden states and logits), ``"output"``
            (logits) or ``"none"``.
        asr_weight: Student: weight of the ASR loss.
        hidden_weight: Student: weight of the cosine loss.
        logit_weight: Student: weight of the Jensen-Shannon divergence. The paper gives
            no weights; 2 beside cross-entropy is DistilWhisper's (arXiv 2311.01070).
        temperature: Student: divides the logits in it.
        teacher_cache: Student: folder that keeps the teacher's outputs.
        ctc_weight: 0; there is no CTC.
        espnet: What :class:`ESPnetASRModel` takes.

    Raises:
        RecipeError: An option, or a file of an expert, does not fit.
    """

    def __init__(
        self,
        *,
        encoder: WhisperLoraEncoder,
        decoder: WhisperLoraDecoder,
        experts: Mapping[str, str] | None = None,
        language: str | None = None,
        lsm_weight: float = 0.0,
        identifier_weight: float = 1.0,
        distillation: str = "layerwise",
        asr_weight: float = 1.0,
        hidden_weight: float = 1.0,
        logit_weight: float = 2.0,
        temperature: float = 1.0,
        teacher_cache: str | None = None,
        ctc_weight: float = 0.0,
        **espnet: Any,
    ) -> None:
        _check_halves(encoder, decoder)
        known, kinds = distillation in DISTILLATIONS, f"one of {list(DISTILLATIONS)}"
        table = [
            ("ctc_weight", ctc_weight, not ctc_weight, "0.0: Whisper has no CTC"),
            ("distillation", distillation, known, kinds),
        ]
        check_values("model_conf.", *table)
        espnet = {
            "ctc_weight": 0.0,
            "sym_sos": "<|startoftranscript|>",
            "sym_eos": "<|endoftext|>",
            "report_cer": False,
            "report_wer": False,
            **espnet,
        }
        super().__init__(encoder=encoder, decoder=decoder, **espnet)
        self.config = encoder.config
        self.language = language
        self.smoothing = lsm_weight
        self.identifier_weight = identifier_weight
        self.distills = self.config.method == "student" and distillation != "none"
        self.layerwise = self.distills and distillation == "layerwise"
        self.asr_weight = asr_weight
        self.hidden_weight = hidden_weight
        self.logit_weight = logit_weight
        self.temperature = temperature
        self.teacher_cache = teacher_cache
        self._cache: TeacherCache | None = None
        self.amp_dtype: torch.dtype | None = None
        for name, path in (experts or {}).items():
            load_expert(self, name, path)
        for half in (encoder, decoder):
            if experts and self.config.method == "student":
                start_student(half, self.config.languages)
            train_only(half, self.config.trained_lora)
        together = self.config.method in ("multilingual", "full")
        for name, vector in decoder.new_tokens.items():
            vector.requires_grad_(together or name == self.config.train_language)

    def forward(
        self,
        speech: Tensor,
        speech_lengths: Tensor,
        text: Tensor,
        text_lengths: Tensor,
        lang: Tensor | None = None,
        utt_id: Sequence[str] = (),
        **unused: Any,
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Compute the loss of a batch, statistics, and the number of tokens.

        Waveforms are ``[B, n]``, 16 kHz, Whisper's text tokens ``[B, U]``, padded with
        -1, ``lang [B, 1]`` places in ``lora.languages``; ``utt_id`` are the keys of the
        teacher's cache.

        Raises:
            RecipeError: A language is missing or has no expert.
        """
        languages = self._names(lang)
        places = torch.arange(int(text_lengths.max()) + 1, device=text.device)
        end = text_lengths[:, None]
        tokens = text[:, : len(places) - 1].masked_fill(places[:-1] >= end, self.eos)
        targets = F.pad(tokens, (0, 1), value=self.eos)
        targets = targets.masked_fill(places > end, IGNORE)
        real = targets != IGNORE
        with self.autocast(speech.device):
            routed = self.route(speech, speech_lengths, languages, self.layerwise)
            encoded, prompt = routed.encoded, routed.prompt
            most = self.decoder.max_tokens - prompt.shape[1]
            if tokens.shape[1] > most:
                row = int(text_lengths.argmax())
                named = f"utterance {utt_id[row]}: " if row < len(utt_id) else ""
                raise RecipeError(
                    f"{named}a text of {tokens.shape[1]} tokens, expected at most "
                    f"{most}, as Whisper takes; leave it out, or cut it into segments"
                )
            decoded = self.decoder.decode(encoded, prompt, tokens, self.layerwise)
            logits = decoded.logits
            loss = F.cross_entropy(
                logits.flatten(0, 1),
                targets.flatten(),
                ignore_index=IGNORE,
                label_smoothing=self.smoothing,
            )
            right = (logits.argmax(-1) == targets)[real]
            stats = {"loss_asr": loss.detach(), "acc": right.float().mean()}
            if encoded.logits is not None:
                truth = lang.flatten().long()
                more = F.cross_entropy(encoded.logits, truth)
                right = encoded.logits.argmax(-1) == truth
                loss = loss + self.identifier_weight * more
                stats["loss_identifier"] = more.detach()
                stats["acc_identifier"] = right.float().mean()
            if self.distills:
                teacher = self._teacher(
                    speech, speech_lengths, tokens, real.sum(1), languages, utt_id
                )
                theirs = self.decoder.project(teacher[1][-1])
                divergence = jensen_shannon(logits, theirs, real, self.temperature)
                loss = self.asr_weight * loss + self.logit_weight * divergence
                stats["loss_logit"] = divergence.detach()
            if self.layerwise:
                # The mean over both halves' layers.
                own, other = encoded.states, decoded.states
                frames = real_positions(encoded.lengths, encoded.output.shape[1])
                hidden = len(own) * cosine_loss(own, teacher[0], frames)
                hidden = hidden + len(other) * cosine_loss(other, teacher[1], real)
                hidden = hidden / (len(own) + len(other))
                loss = loss + self.hidden_weight * hidden
                stats["loss_hidden"] = hidden.detach()
        stats["loss"] = loss.detach()
        return force_gatherable((loss, stats, real.sum()), loss.device)

    def autocast(self, device: torch.device) -> AbstractContextManager:
        """Return the precision of ``amp_dtype``, float32 without."""
        enabled = self.amp_dtype is not None
        return torch.autocast(device.type, self.amp_dtype, enabled=enabled)

    def route(
        self,
        speech: Tensor,
        lengths: Tensor,
        languages: Sequence[str] | None,
        keep_states: bool = False,
    ) -> Routed:
        """Encode waveforms ``[B, n]`` with each utterance's LoRA, and make the prompt.

        Languages that are not given are identified; a student looks at them in no case.

        Raises:
            RecipeError: Nothing can identify the language, or a given one has no
                expert.
        """
        config, device = self.config, speech.device
        prompts = self.decoder.prompts
        if config.method == "student":
            route = Route((STUDENT,))
            encoded = self.encoder.encode(speech, lengths, route, keep_states)
            prompt = prompts.for_student(len(speech), device)
            return Routed(encoded, prompt, None, None)
        route: Route | None = None
        if config.method == "multilingual":
            route = Route((MULTILINGUAL,))
        elif languages is not None and config.method in ("experts", "mole"):
            route = Route.of(languages, device)
        elif config.method == "experts":
            raise RecipeError(
                "language: found none; method experts has no identifier: give each "
                "utterance's language, or use method mole"
            )
        encoded = self.encoder.encode(speech, lengths, route)
        posterior, chosen = None, []
        if config.method == "mole":
            posterior = encoded.logits.softmax(-1)
            chosen = posterior.argmax(-1).tolist()
        elif languages is None:
            posterior, chosen = self._ask_whisper(encoded)
        if languages is None:
            languages = [config.languages[i] for i in chosen]
        prompt = prompts.for_languages(languages, device)
        return Routed(encoded, prompt, list(languages), posterior)

    def _ask_whisper(self, encoded: Encoded) -> tuple[Tensor, list[int]]:
        """Whisper's own identification, among the configured languages.

        Returns:
            Posterior ``[B, N]``, where languages with the same token share its
            probability, and the first language of the likeliest token ``[B]``.
        """
        prompts = self.decoder.prompts
        if not self.config.languages:
            raise RecipeError(
                "lora.languages: found none, expected the languages to choose from"
            )
        output = encoded.output
        start = prompts.start(len(output), output.device)
        logits = self.decoder.decode(encoded, start, start[:, :0]).logits[:, 0]
        ids = [prompts.spoken[name] for name in self.config.languages]
        different = list(dict.fromkeys(ids))
        tokens = logits[:, different].softmax(-1)
        columns = [different.index(number) for number in ids]
        counts = torch.tensor([ids.count(n) for n in ids], device=output.device)
        # Not the arg-max of the posterior: sharing a token is no evidence against.
        likeliest = [different[i] for i in tokens.argmax(-1).tolist()]
        return tokens[:, columns] / counts, [ids.index(n) for n in likeliest]

    @torch.no_grad()
    def _teacher(
        self,
        speech: Tensor,
        lengths: Tensor,
        tokens: Tensor,
        counts: Tensor,
        languages: list[str],
        utterances: Sequence[str],
    ) -> States:
        """Outputs of each utterance's own expert, without dropout."""
        layerwise = self.layerwise
        if self.teacher_cache is not None and self._cache is None:
            self._cache = TeacherCache(self.teacher_cache, experts_hash(self))
        if self._cache is not None:
            sizes = zip(tokens.tolist(), counts.tolist(), strict=True)
            texts = [row[: count - 1] for row, count in sizes]
            # Exact in any batch: 16-bit samples are whole numbers.
            sums = (speech.double() * 2**15).abs().long().sum(1)
            audio = zip(lengths.tolist(), sums.tolist(), strict=True)
            keys = [*map(self._cache.key, utterances, audio, texts)]
            found = self._cache.read(keys, layerwise, speech.device)
            if found is not None:
                return found
        training = self.training
        self.eval()
        route = Route.of(languages, speech.device)
        encoded = self.encoder.encode(speech, lengths, route, layerwise)
        prompt = self.decoder.prompts.for_languages(languages, speech.device)
        states = self.decoder.decode(encoded, prompt, tokens, True).states
        self.train(training)
        outputs = encoded.states, states if layerwise else states[-1:]
        if self._cache is not None:
            self._cache.write(keys, outputs, encoded.lengths, counts)
        return outputs

    def encode(self, speech: Tensor, speech_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode for ESPnet's inference; prompt and route go to the decoder.

        ``language`` is taken as given, or identified where it is ``None``.
        """
        languages = None if self.language is None else [self.language] * len(speech)
        routed = self.route(speech, speech_lengths, languages)
        self.decoder.prompt = routed.prompt
        self.decoder.route = routed.encoded.route
        return routed.encoded.output, routed.encoded.lengths

    def _names(self, lang: Tensor | None) -> list[str]:
        languages = self.config.languages
        if lang is None:
            raise RecipeError(
                "lang: found no languages of utterances, expected "
                "`utt2langid,lang,text_int` among the data"
            )
        numbers = lang.flatten().tolist()
        if wrong := set(numbers) - set(range(len(languages))):
            raise RecipeError(
                f"lang: found {sorted(wrong)}, expected places in lora.languages "
                f"({', '.join(languages)}), counted from 0"
            )
        names = [languages[number] for number in numbers]
        trained = self.config.train_language
        others = sorted(set(names) - {trained}) if trained else []
        if others:
            raise RecipeError(
                f"lang: found utterances of {', '.join(others)} where the expert of "
                f"{trained} trains (lora.train_language); give it {trained} only"
            )
        return names


def _check_halves(encoder: Any, decoder: Any) -> None:
    if not (
        isinstance(encoder, WhisperLoraEncoder)
        and isinstance(decoder, WhisperLoraDecoder)
    ):
        raise RecipeError(
            "model: whisper_lora needs encoder: whisper_lora and decoder: "
            f"whisper_lora, found {type(encoder).__name__} and {type(decoder).__name__}"
        )
    if encoder.config != decoder.config or encoder.dims != decoder.dims:
        raise RecipeError(
            "encoder_conf and decoder_conf: found different values of whisper, dims or "
            "lora; give both the same"
        )
