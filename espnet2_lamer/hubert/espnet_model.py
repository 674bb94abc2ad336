"""ESPnet model ``lamer``: masked prediction, expert balance (Lamer-SSL, Eq. 8)."""

import math
from collections.abc import Sequence

import torch
from espnet2.hubert.espnet_model import TorchAudioHubertPretrainModel
from espnet2.torch_utils.device_funcs import force_gatherable
from espnet2.train.abs_espnet_model import AbsESPnetModel
from torch import Tensor
from torch.nn import functional as F

from espnet2_lamer.asr.encoder.lamer_hubert import LamerHubertEncoder
from espnet2_lamer.asr.encoder.masked_prediction import MaskedPrediction
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.hubert.statistics import (
    LanguageStatistics,
    RoutingLog,
    global_sums,
    is_distributed,
)
from espnet2_lamer.layers import LamerFeedForward, Router, experts_off, record_routing
from espnet2_lamer.layers.balance import BalanceTerm
from espnet2_lamer.layers.config import check_values
from espnet2_lamer.layers.feed_forward import RoutingRecord
from espnet2_lamer.precision import AMP_DTYPES


class LamerHubertPretrainModel(TorchAudioHubertPretrainModel):
    r"""Masked-prediction training of a HuBERT with LoRA experts.

    .. math::
        L = \frac{1}{|M|} \sum_{t \in M} -\log P(z_t \mid h_t)
            + \frac{u}{|U|} \sum_{t \in U} -\log P(z_t \mid h_t)
            + \lambda \sum_l L_{lb}^{(l)}
            + w \cdot \overline{\lVert conv \rVert^2}
            + d \cdot L_{dist}

    M are the masked, U the other real frames. The last term but one, a mean over real
    frames (fairseq: padding included), counts only where the convolution stack trains.
    Dividing by the number of masked frames keeps lambda's meaning whatever the batch.

    Args:
        encoder: Backbone, experts and head.
        token_list: Units ``0 .. K-1`` in order, then ``<unk>``, ``<sos/eos>``.
        balance_weight: lambda.
        balance_reduction: ``"sum"`` or ``"mean"`` over balanced layers.
        unmasked_weight: u, fairseq's ``pred_nomask_weight``; 0 in HuBERT and Lamer-SSL.
        feature_penalty: w, for training the convolution stack.
        distill_weight: d, of the mean cosine distance of the transformer's output to
            the frozen base's on replayed speech; not in the paper, 0 leaves it out.
            With it the loss, though no input of the network, depends on ``lang``.
        logit_temp: Temperature of the cosine logits.
        amp_dtype: ``none``, ``bf16`` (also on CPU) or ``fp16``.
        vocab_size: Unused. ESPnet's own task, which S3PRL calls, passes it and those
            below, which must be ``None``: a HuBERT hears the waveform.

    Raises:
        RecipeError: K of the head and of the token list differ, or an option has an
            unknown value.
    """

    def __init__(
        self,
        encoder: LamerHubertEncoder,
        token_list: Sequence[str],
        balance_weight: float = 0.001,
        balance_reduction: str = "sum",
        unmasked_weight: float = 0.0,
        feature_penalty: float = 10.0,
        distill_weight: float = 0.0,
        logit_temp: float = 0.1,
        amp_dtype: str = "none",
        vocab_size: int | None = None,
        frontend: None = None,
        specaug: None = None,
        normalize: None = None,
        preencoder: None = None,
    ) -> None:
        AbsESPnetModel.__init__(self)
        unused = {"frontend": frontend, "specaug": specaug}
        unused |= {"normalize": normalize, "preencoder": preencoder}
        null = "null (and input_size 1): the model hears the waveform as it is"
        table = [(k, type(v).__name__, v is None, null) for k, v in unused.items()]
        for key, value, known in (
            ("model_conf.balance_reduction", balance_reduction, ["sum", "mean"]),
            ("amp_dtype", amp_dtype, list(AMP_DTYPES)),
        ):
            table.append((key, value, value in known, f"one of {known}"))
        check_values("", *table)
        units = [str(unit) for unit in range(encoder.num_classes)]
        if list(token_list[: len(units)]) != units or len(token_list) != len(units) + 2:
            raise RecipeError(
                f"token_list: expected 0 .. {len(units) - 1} in order, <unk>, "
                f"<sos/eos> for num_classes {len(units)}; found {len(token_list)} "
                "lines. Make it from the codebook, or set num_classes to its K"
            )
        self.encoder = encoder
        encoder.hubert_pretrain_model.logit_generator.logit_temp = logit_temp
        self.token_list = list(token_list)
        self.vocab_size = len(self.token_list)
        self.balance_weight = balance_weight
        self.balance_reduction = balance_reduction
        self.unmasked_weight = unmasked_weight
        self.feature_penalty = feature_penalty
        self.distill_weight = distill_weight
        # A head-only control is the base: there is no distance.
        self._distills = distill_weight > 0 and (
            encoder.lamer is None
            or any(isinstance(m, LamerFeedForward) for m in encoder.modules())
        )
        #: Numbers of the replayed languages in the data ``lang``.
        self.replay_numbers: list[int] = []
        self.amp_dtype = amp_dtype
        self.routing_statistics = RoutingLog()
        self.language_statistics = LanguageStatistics()
        #: Masked frames of the latest training batch over all ranks, on the device.
        self.total_weight: Tensor | None = None
        self.register_buffer("training_batches", torch.zeros((), dtype=torch.long))

    def forward(
        self,
        speech: Tensor,
        speech_lengths: Tensor,
        text: Tensor,
        text_lengths: Tensor,
        mask_indices: Tensor,
        **kwargs: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor | float | None], Tensor]:
        """Compute loss, statistics and weight, the number of masked frames, of a batch.

        In distributed training the means run over the batches of all ranks: ESPnet
        averages the losses that ranks return by their weights, and that average is
        the loss of one process on all ranks' utterances.

        Waveforms are ``[B, n]``, the unit of every frame is in ``text [B, T]``, masked
        frames of each utterance in ``mask_indices [B, M]``, both padded with -1. Among
        other data ``lang [B]``, the number of each utterance's language, serves
        ``language_statistics`` and distillation only; ``real_frames`` and
        ``masked_frames``, positions in the flattened ``[B, T]``, spare a device the
        question how many there are. ``features [S, T, C]`` and ``feature_places [B]``
        stand for waveforms that are not there, see the encoder's ``stored``.
        """
        if self.training:
            self.training_batches += 1
            for module in self.modules():
                if isinstance(module, Router):
                    module.update_selection_bias()
        mask = index_mask(mask_indices, text.shape[1])
        frames = None
        if {"real_frames", "masked_frames"} <= kwargs.keys():
            frames = kwargs["real_frames"], kwargs["masked_frames"]
        stored = None
        if "features" in kwargs:
            stored = kwargs["features"], kwargs["feature_places"]
        with record_routing(self) as record:
            output = self.encoder(
                *(speech, speech_lengths, mask),
                with_unmasked=self.unmasked_weight > 0,
                with_hidden=self._distills,
                dtype=AMP_DTYPES[self.amp_dtype],
                frames=frames,
                stored=stored,
            )
            distilled = None
            if self._distills:
                lang = kwargs.get("lang")
                distilled = self._distilled(output, speech, speech_lengths, mask, lang)
        text = text[:, : output.packing.frames].flatten()
        loss, stats, weight = self._loss(output, text, record, distilled)
        if "lang" in kwargs:
            utterances = output.masked.div(output.packing.frames, rounding_mode="floor")
            of_frames = kwargs["lang"].reshape(-1).index_select(0, utterances)
            labels = text.index_select(0, output.masked)
            self.language_statistics.add(output.logits, labels, of_frames)
        if self.training:
            mask = mask[:, : output.packing.frames]
            self.routing_statistics.add(record, output.real, mask)
            if self.routing_statistics.due:
                stats |= self.routing_statistics.read(self.training_batches)
            if is_distributed():
                return force_gatherable((loss, stats, weight), loss.device)
        return loss, stats, weight

    def keep_frozen(self) -> None:
        """Prepare what never changes for a training: loaded, on its device."""
        self.encoder.keep_frozen(AMP_DTYPES[self.amp_dtype])

    def _loss(
        self,
        output: MaskedPrediction,
        text: Tensor,
        record: RoutingRecord,
        distilled: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor | float | None], Tensor]:
        """As :meth:`forward`; ``text`` has the unit of every frame of the grid."""
        labels = text.index_select(0, output.masked)
        # Filled on the device: nothing is copied there.
        weight = output.logits.new_full((), float(max(labels.numel(), 1)))
        balance = BalanceTerm(record, output.real, self.encoder.lamer)
        others = None
        if output.unmasked is not None:
            others = text.index_select(0, output.unmasked)
        local = [
            weight,
            weight.new_full((), float(labels.numel())),
            weight.new_full((), float(0 if others is None else others.numel())),
            weight.new_zeros(()) if distilled is None else distilled[1],
            *balance.local_sums(),
        ]
        # A validation batch stands alone: some rank may have none.
        total = global_sums(local) if self.training else local
        total_weight, masked, unmasked, replayed, *balance_sums = total
        # What a rank returns is multiplied by its weight and divided by their sum.
        own_share = total_weight / weight
        if self.training:
            self.total_weight = total_weight

        # With no masked frame: a zero that still depends on everything that trains,
        # as DDP requires.
        summed = F.cross_entropy(output.logits, labels, reduction="sum")
        masked_loss = summed / masked.clamp(min=1.0) * own_share
        loss = masked_loss
        stats: dict[str, Tensor | float | None] = {
            "loss_m": masked_loss.detach(),
            "loss_m_bits": masked_loss.detach() / math.log(2.0),
            "acc_m": _correct(output.logits, labels) / masked * own_share,
        }
        if others is not None:
            summed = F.cross_entropy(output.unmasked_logits, others, reduction="sum")
            share = own_share / unmasked.clamp(min=1.0)
            loss = loss + self.unmasked_weight * summed * share
            stats["loss_u"] = summed.detach() * share
            stats["acc_u"] = _correct(output.unmasked_logits, others) * share
        part = balance.part(balance_sums, self.balance_reduction)
        if part is not None:
            loss = loss + self.balance_weight * part * own_share
            stats["balance"] = part.detach() * own_share
        if self.training:
            balance.note_load(balance_sums)
        if output.squared_features is not None:
            # balance_sums[0] counts the real frames of all ranks.
            penalty = output.squared_features / balance_sums[0] * own_share
            loss = loss + self.feature_penalty * penalty
            stats["feature_penalty"] = penalty.detach()
        if distilled is not None:
            distance = distilled[0] / replayed.clamp(min=1.0) * own_share
            loss = loss + self.distill_weight * distance
            stats["distill"] = distance.detach()
        stats["loss"] = loss.detach()
        return loss, stats, weight

    def _distilled(
        self,
        output: MaskedPrediction,
        speech: Tensor,
        lengths: Tensor,
        mask: Tensor,
        lang: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        r"""Distance of the model's output from the base's, on replayed utterances.

        With R their real frames, masked or not, :math:`h_t` the transformer's output
        and :math:`h^0_t` that of the base (the same network with its experts switched
        off) for the same input, masks included,

        .. math:: L_{dist} = \frac{1}{|R|} \sum_{t \in R} (1 - \cos(h_t, h^0_t))

        Only the model gets a gradient. The sum over R and :math:`|R|` are scalars, 0
        and 0 where nothing is replayed.
        """
        if self.encoder.lamer is None:
            raise RecipeError(
                "model_conf.distill_weight: found above 0 without encoder_conf.lamer, "
                "expected experts: the base must stay to be the teacher"
            )
        if lang is None or not self.replay_numbers:
            raise RecipeError(
                "model_conf.distill_weight: found above 0 without replayed languages, "
                "expected the data `lang`, --langs and --replay_langs, as the recipe "
                "gives them (run.sh --replay_langs)"
            )
        numbers = torch.tensor(self.replay_numbers, device=lang.device)
        replayed = torch.isin(lang.reshape(-1), numbers)
        if not bool(replayed.any()):
            return output.hidden.sum() * 0.0, output.hidden.new_zeros(())
        rows = replayed.nonzero().squeeze(-1)
        training = self.encoder.training
        with torch.no_grad(), experts_off(self.encoder):
            # The teacher drops nothing.
            self.encoder.eval()
            dtype = AMP_DTYPES[self.amp_dtype]
            given = speech[:0], lengths[rows], mask[rows]
            # The convolution stack, which is frozen, gave them already.
            stored = output.features[rows], torch.arange(len(rows), device=rows.device)
            base = self.encoder(*given, dtype=dtype, stored=stored).hidden
            self.encoder.train(training)
        real = output.real[rows]
        mine, theirs = output.hidden[rows][real], base[real]
        distance = 1.0 - F.cosine_similarity(mine.float(), theirs.float(), dim=-1)
        return distance.sum(), real.sum().float()

    def collect_feats(
        self, speech: Tensor, speech_lengths: Tensor, **kwargs: Tensor
    ) -> dict[str, Tensor]:
        """Return the waveform itself: there is no frontend to take statistics of."""
        return {"feats": speech, "feats_lengths": speech_lengths}


def _correct(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.detach().argmax(-1) == labels).float().sum()


def index_mask(indices: Tensor, num_frames: int) -> Tensor:
    """Turn padded frame indices ``[B, M]`` (padding -1) into a bool ``[B, T]``."""
    mask = torch.zeros(
        indices.shape[0], num_frames + 1, dtype=torch.bool, device=indices.device
    )
    # Padding lands in an extra last column, which is cut off.
    columns = torch.where(indices < 0, num_frames, indices)
    return mask.scatter_(1, columns, True)[:, :num_frames]
