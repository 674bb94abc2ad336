"""Retention by distillation: on replayed speech, stay what the frozen base is."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from espnet2_lamer.asr.encoder.lamer_hubert import LamerHubertEncoder, MaskedPrediction
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.layers import experts_off


def distillation_sums(
    encoder: LamerHubertEncoder,
    output: MaskedPrediction,
    speech: Tensor,
    lengths: Tensor,
    mask: Tensor,
    replayed: Tensor,
) -> tuple[Tensor, Tensor]:
    r"""Distance of the model's output from the base's, on replayed utterances.

    With R the real frames of replayed utterances, masked or not, :math:`h_t` the
    transformer's output and :math:`h^0_t` that of the base (the same network with its
    experts switched off) for the same input, masks included,

    .. math:: L_{dist} = \frac{1}{|R|} \sum_{t \in R} (1 - \cos(h_t, h^0_t))

    Only the model gets a gradient.

    Args:
        encoder: With experts.
        output: What it made of this batch.
        speech: Waveforms ``[B, n]``.
        lengths: Valid samples ``[B]``.
        mask: Masked frames ``[B, T]``.
        replayed: Which utterances are replay ``[B]`` bool.

    Returns:
        The sum over R and :math:`|R|`, scalars; 0 and 0 where nothing is replayed.
    """
    if not bool(replayed.any()):
        return output.hidden.sum() * 0.0, output.hidden.new_zeros(())
    rows = replayed.nonzero().squeeze(-1)
    with torch.no_grad(), experts_off(encoder):
        base = encoder(speech[rows], lengths[rows], mask[rows]).hidden
    real = output.real[rows]
    mine, theirs = output.hidden[rows][real], base[real]
    distance = 1.0 - F.cosine_similarity(mine.float(), theirs.float(), dim=-1)
    return distance.sum(), real.sum().float()


def replayed_utterances(
    lang: Tensor | None, replay_numbers: Sequence[int], encoder: LamerHubertEncoder
) -> Tensor:
    """Tell which utterances are replayed.

    Args:
        lang: Language number of each utterance ``[B]``, or None without that data.
        replay_numbers: Numbers of replayed languages.
        encoder: Checked: its base must be there, frozen.

    Returns:
        ``[B]`` bool.

    Raises:
        RecipeError: There are no experts, languages or replayed languages.
    """
    if encoder.lamer is None:
        raise RecipeError(
            "model_conf.distill_weight: found above 0 without encoder_conf.lamer, "
            "expected experts: the base must stay to be the teacher"
        )
    if lang is None or not replay_numbers:
        raise RecipeError(
            "model_conf.distill_weight: found above 0 without replayed languages, "
            "expected the data `lang`, --langs and --replay_langs, as stage 7 gives "
            "them (run.sh --replay_langs)"
        )
    numbers = torch.tensor(list(replay_numbers), device=lang.device)
    return torch.isin(lang.reshape(-1), numbers)
