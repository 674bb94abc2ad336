"""ESPnet's recogniser with the loss of the languages that route its upstream."""

from typing import Any

import torch
from espnet2.asr.espnet_model import ESPnetASRModel
from torch import Tensor
from torch.nn import functional as F

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.layers.lid_routing import record_languages


class LidRoutedASRModel(ESPnetASRModel):
    """A CTC recogniser on ``frontend: lamer_upstream`` with ``tune: lid_routed``.

    The loss is ESPnet's + weight * cross-entropy of the language, averaged over
    utterances (HLoRA, arXiv 2601.00557). Weights and decoding are ESPnet's model's.
    """

    def forward(
        self,
        speech: Tensor,
        speech_lengths: Tensor,
        text: Tensor,
        text_lengths: Tensor,
        lang: Tensor | None = None,
        **more: Any,
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Return loss, figures and weight of a batch.

        Speech is ``[B, n]``, text ``[B, L]``, ``lang [B, 1]`` the number of each
        utterance's language. Nothing of it reaches the encoder.

        Raises:
            RecipeError: The identifier has no language to learn.
        """
        with record_languages(self.frontend) as heard:
            loss, stats, weight = super().forward(
                speech, speech_lengths, text, text_lengths, **more
            )
        if not heard:  # every layer is shared
            return loss, stats, weight
        if lang is None:
            raise RecipeError(
                "lid_routed: found no language of a batch, expected the data lang "
                "(utt2langid,lang,text_int) beside speech and text"
            )
        logits, target = torch.cat(heard), lang[:, 0]
        of_language = F.cross_entropy(logits, target)
        loss = loss + self.frontend.lid_weight * of_language
        right = (logits.argmax(-1) == target).float().mean()
        more = {"loss": loss, "loss_lid": of_language, "acc_lid": right}
        return (
            loss,
            stats | {k: v.detach().reshape(-1) for k, v in more.items()},
            weight,
        )
