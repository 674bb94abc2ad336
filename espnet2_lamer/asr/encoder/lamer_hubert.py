"""ESPnet encoder ``lamer_hubert``: a HuBERT with LoRA experts and a unit head."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from espnet2.asr.encoder.abs_encoder import AbsEncoder
from espnet2.asr.encoder.hubert_encoder import TorchAudioHuBERTPretrainEncoder
from torch import Tensor, nn
from torchaudio.models import HuBERTPretrainModel

from espnet2_lamer.asr.encoder import blocks
from espnet2_lamer.asr.encoder.masked_prediction import (
    MaskedPrediction,
    MaskedPredictionHead,
    MaskEmbedding,
)
from espnet2_lamer.asr.frozen_base import FrozenBase
from espnet2_lamer.convert import load_hubert
from espnet2_lamer.convert.architecture import LARGE, STRUCTURE, build_hubert
from espnet2_lamer.convert.families import ADDED
from espnet2_lamer.convert.load import source_sha256
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.layers import LamerConfig, Router, add_lamer
from espnet2_lamer.layers.packing import Packing
from espnet2_lamer.layers.working import router_parts, working_copies

BASE_HASH = "base_sha256"
# A tensor of every HuBERT's backbone.
GUARD = "hubert_pretrain_model.wav2vec2.encoder.transformer.layer_norm.weight"


def check_beside_base(conf: Mapping[str, Any], architecture: Mapping[str, Any]) -> None:
    """Refuse what ``encoder_conf`` says of the network where its base says another.

    Raises:
        RecipeError: With the key, the value found and the base's.
    """
    default = LARGE | {"normalize_waveform": True} | ADDED
    for key in ("normalize_waveform", *STRUCTURE, *ADDED):
        found = json.dumps(conf.get(key))
        has = json.dumps(architecture.get(key, default[key]))
        if found not in ("null", has):
            raise RecipeError(
                f"encoder_conf.{key}: found {found}, expected {has}, as the base has; "
                "beside a base it has no effect: leave the key out"
            )


class LamerHubertEncoder(FrozenBase, TorchAudioHuBERTPretrainEncoder):
    """HuBERT backbone, LoRA experts, mask embedding and masked-prediction head.

    With ``lamer`` the backbone is frozen and only experts, routers and head train;
    ``lamer.allocation: 0`` leaves the head alone to train (the control). Without
    ``lamer`` everything trains (full fine-tuning, or training from nothing).

    A frozen base from a file is not written into checkpoints: they hold what trains,
    our persistent buffers and the base's SHA-256.

    Args:
        num_classes: K, the number of units.
        input_size: Unused; the input is a waveform.
        base: Any checkpoint that :func:`espnet2_lamer.convert.load_hubert` reads.
            ``None`` builds random weights from the architecture arguments below.
        lamer: Fields of :class:`LamerConfig`, or ``None``.
        mask_prob: Recorded for the collate function, which draws the masks.
        mask_length: As ``mask_prob``; frames per span.
        final_dim: Size of the unit embeddings.
        final_norm: Whether the last layer's features get the final LayerNorm when
            features are extracted.
        gradient_checkpointing: Recompute layers in the backward pass.
        compile: Run features to logits through ``torch.compile``; lengths are dynamic.
        normalize_waveform: ``None``: the base's, without one true. So are all below,
            HuBERT-Large's without a base; beside one, another value is refused.
        extractor_conv_layer_config: ``[[channels, kernel, stride], ...]``.
        encoder_layer_norm_first: Pre-norm (Large) or post-norm (Base). It and the
            others are arguments of ``torchaudio.models.wav2vec2_model``.
        encoder_layer_drop: It and the dropouts are a training's, with a base as
            without; 0 whatever the base was trained with.
        family: ``hubert``, ``wav2vec2``, ``data2vec-audio`` or ``wavlm``; it and the
            next three are HuBERT's without a base.
        encoder_pos_conv_depth: Convolutions of data2vec's position embedding.
        encoder_num_buckets: Buckets of WavLM's relative position bias.
        encoder_max_distance: Frames, from which on all share the last bucket.

    Raises:
        RecipeError: An option, or the base, does not fit.
    """

    def __init__(
        self,
        num_classes: int,
        input_size: int | None = None,
        base: str | None = None,
        lamer: dict[str, Any] | None = None,
        mask_prob: float = 0.8,
        mask_length: int = 10,
        final_dim: int = 768,
        final_norm: bool = True,
        gradient_checkpointing: bool = False,
        compile: bool = False,  # noqa: A002  the name that trainings give it
        normalize_waveform: bool | None = None,
        extractor_mode: str | None = None,
        extractor_conv_layer_config: Sequence[Sequence[int]] | None = None,
        extractor_conv_bias: bool | None = None,
        encoder_embed_dim: int | None = None,
        encoder_projection_dropout: float = 0.0,
        encoder_pos_conv_kernel: int | None = None,
        encoder_pos_conv_groups: int | None = None,
        encoder_num_layers: int | None = None,
        encoder_num_heads: int | None = None,
        encoder_attention_dropout: float = 0.0,
        encoder_ff_interm_features: int | None = None,
        encoder_ff_interm_dropout: float = 0.0,
        encoder_dropout: float = 0.0,
        encoder_layer_norm_first: bool | None = None,
        encoder_layer_drop: float = 0.0,
        family: str | None = None,
        encoder_pos_conv_depth: int | None = None,
        encoder_num_buckets: int | None = None,
        encoder_max_distance: int | None = None,
    ) -> None:
        given = locals()
        AbsEncoder.__init__(self)
        if num_classes is None:
            raise RecipeError("num_classes: found null, expected the number of units")
        dropouts = {key: given[key] for key in LARGE if key not in STRUCTURE}
        stated = {
            key: given[key]
            for key in ("normalize_waveform", *STRUCTURE, *ADDED)
            if given[key] is not None
        }
        base_sha256 = None
        if base is None:
            if extractor_conv_layer_config is not None:
                shapes = [list(shape) for shape in extractor_conv_layer_config]
                stated["extractor_conv_layer_config"] = shapes
            wav2vec2 = build_hubert(stated | dropouts)
        else:
            try:
                wav2vec2 = load_hubert(base, dropouts)
            except RecipeError as error:
                raise RecipeError(
                    f"encoder_conf.base: {error}. Where the base of a trained model "
                    "moved, name its new place: encoder_conf.base in the config.yaml, "
                    "or the argument base of espnet2_lamer.load_model"
                ) from error
            check_beside_base(stated, wav2vec2.architecture)
            base_sha256 = source_sha256(base)
        self.architecture = wav2vec2.architecture
        self.lamer = None if lamer is None else LamerConfig(**lamer)
        self.mask_prob = mask_prob
        self.mask_length = mask_length
        self.final_norm = final_norm
        self.gradient_checkpointing = gradient_checkpointing
        self.compiles = compile
        self._output_size = self.architecture["encoder_embed_dim"]
        base_tensors = [*wav2vec2.state_dict(keep_vars=True).values()]
        if self.lamer is not None:
            add_lamer(wav2vec2, self.lamer)
        frozen = self.lamer is not None
        mask = MaskEmbedding(self._output_size, wav2vec2.mask_embedding, frozen)
        head = MaskedPredictionHead(self._output_size, num_classes, final_dim)
        self.hubert_pretrain_model = HuBERTPretrainModel(wav2vec2, mask, head, None)
        self.num_classes = num_classes
        base_tensors += [p for p in mask.parameters() if not p.requires_grad]
        # Without experts the base trains.
        self.set_base(
            "encoder_conf.base",
            base_sha256 if frozen else None,
            base_tensors,
            GUARD,
            BASE_HASH,
            torch.uint8,
        )

    @property
    def wav2vec2(self) -> nn.Module:
        """The backbone with its experts."""
        return self.hubert_pretrain_model.wav2vec2

    def output_size(self) -> int:
        """Width D of a hidden state."""
        return self._output_size

    def reload_pretrained_parameters(self) -> None:
        """Do nothing: the base is loaded when the encoder is built."""

    @cached_property
    def _copied(self) -> list[nn.Parameter]:
        """Weights that a forward pass needs in the type it computes in."""
        # These compute in float32.
        others = [self.hubert_pretrain_model.logit_generator.label_embeddings]
        others += [m.weight for m in self.modules() if isinstance(m, Router)]
        positions = self.wav2vec2.encoder.transformer.pos_conv_embed
        if positions.folded is not None:
            others += positions.parameters()
        others = {id(parameter) for parameter in others}
        return [p for p in self.parameters() if id(p) not in others]

    @property
    def _routers(self) -> list[nn.Parameter]:
        return [m.weight for m in self.modules() if isinstance(m, Router)]

    def keep_frozen(self, dtype: torch.dtype | None) -> None:
        """Prepare the frozen base for a training that computes in ``dtype``.

        See :func:`~espnet2_lamer.asr.encoder.blocks.keep_frozen`. Without a base from a
        file nothing is done: checkpoints hold all weights then, as they are.
        """
        prefix = "hubert_pretrain_model.wav2vec2."
        names = [key.removeprefix(prefix) for key in self.base_keys()]
        if not names:
            return
        blocks.keep_frozen(self.wav2vec2, names, dtype)
        mask = self.hubert_pretrain_model.mask_generator.mask_embedding
        if dtype is not None and not mask.requires_grad:
            mask.data = mask.data.to(dtype)
        self.__dict__.pop("_copied", None)

    def forward(
        self,
        waveforms: Tensor,
        lengths: Tensor,
        mask: Tensor,
        with_unmasked: bool = False,
        with_hidden: bool = True,
        dtype: torch.dtype | None = None,
        frames: tuple[Tensor, Tensor] | None = None,
        stored: tuple[Tensor, Tensor] | None = None,
    ) -> MaskedPrediction:
        """Encode, replacing masked frames, and score the units of masked frames.

        Only real frames are computed, in ``dtype`` (``None``: the weights' own):
        convolutions, residual stream, LayerNorm, attention, FFN and experts alike.
        Routers, their softmax and the logits are float32 in any case; sums within
        products and LayerNorm are, too.

        Args:
            waveforms: ``[B, n]``, 16 kHz; fewer rows where some are ``stored``.
            lengths: Samples of all utterances, ``[B]``.
            mask: Masked frames, bool ``[B, T]``; those in padding do not count.
            with_unmasked: Score the other real frames, too.
            with_hidden: Return the transformer's output; without it the last block
                computes no more than logits need.
            dtype: ``torch.bfloat16`` or ``torch.float16``.
            frames: Positions of all real and of all masked frames in the flattened
                grid ``[B, T]``, if the caller knows them: nobody then has to ask the
                device how many there are.
            stored: Output of the frozen convolution stack for the utterances that have
                no waveform, ``[S, T, C]``, and the place of each of B, ``[B]``, among
                those with one, which count first, and these.
        """
        with (
            torch.autocast(waveforms.device.type, enabled=False),
            working_copies(self._copied, dtype) as copies,
            router_parts(self._routers, dtype),
        ):
            features, counts = self._features(waveforms, lengths, dtype, stored)
            mask = mask[:, : features.shape[1]]
            known = frames is not None and mask.shape[1] == features.shape[1]
            real, masked = frames if known else (None, None)
            packing = Packing.of(counts, features.shape[1], real)
            if masked is None:
                masked = (mask & packing.real).flatten().nonzero().squeeze(1)
            unmasked = None
            if with_unmasked:
                unmasked = (packing.real & ~mask).flatten().nonzero().squeeze(1)
            network = self._compiled if self.compiles else self._network
            rows, logits, others = network(
                *(features, packing, mask, masked, unmasked, copies, with_hidden)
            )
            squares = None
            if features.requires_grad:
                squares = packing.pack(features).float().pow(2).mean(-1).sum()
        return MaskedPrediction(
            packing, features, rows, masked, logits, unmasked, others, squares
        )

    def _features(
        self,
        waveforms: Tensor,
        lengths: Tensor,
        dtype: torch.dtype | None,
        stored: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        """Features ``[B, T, C]`` of the convolution stack, and frames of each."""
        counts = self.wav2vec2.feature_extractor.num_frames(lengths)
        if stored is None:
            return self._convolved(waveforms, lengths, dtype), counts
        features, places = stored
        if len(waveforms):
            own = lengths.index_select(0, places.argsort()[: len(waveforms)])
            computed = self._convolved(waveforms, own, dtype)
            features = torch.cat([computed, features.to(computed.dtype)])
        return features.index_select(0, places), counts

    def _convolved(
        self, waveforms: Tensor, lengths: Tensor, dtype: torch.dtype | None
    ) -> Tensor:
        extractor = self.wav2vec2.feature_extractor
        # So no utterance depends on its batch, to the bit: libraries sum larger
        # products in another order. With one thread and in float32 it is as fast.
        alone = dtype is None and waveforms.device.type == "cpu" and len(waveforms) > 1
        alone = alone and torch.get_num_threads() == 1
        if alone and not any(p.requires_grad for p in extractor.parameters()):
            rows = zip(waveforms.split(1), lengths.split(1), strict=True)
            return torch.cat([extractor(*row, dtype)[0] for row in rows])
        return extractor(waveforms, lengths, dtype)[0]

    @torch.no_grad()
    def features(
        self, waveforms: Iterable[tuple[Tensor, Tensor]], dtype: torch.dtype | None
    ) -> Iterator[Tensor]:
        """Yield what the convolution stack gives, ``[B, T, C]``, for padded batches.

        A batch is waveforms ``[B, n]`` and their samples ``[B]``; ``dtype`` is that of
        :meth:`forward`, whose features these are.
        """
        with working_copies(self._copied, dtype):
            for wavs, lengths in waveforms:
                with torch.autocast(wavs.device.type, enabled=False):
                    yield self._features(wavs, lengths, dtype, None)[0]

    def _network(
        self,
        features: Tensor,
        packing: Packing,
        mask: Tensor,
        masked: Tensor,
        unmasked: Tensor | None,
        copies: Mapping[nn.Parameter, Tensor],
        with_hidden: bool,
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """From features of the convolution stack to rows and logits."""
        head, wav2vec2 = self.hubert_pretrain_model.logit_generator, self.wav2vec2
        for layer in wav2vec2.encoder.transformer.layers:
            record = getattr(layer.feed_forward, "record", None)
            if record is not None and len(layer.feed_forward.routers) > 0:
                record.packing = packing
        x = blocks.project(wav2vec2, features)
        x = self.hubert_pretrain_model.mask_generator(x, mask)
        if packing.rows is not None:
            x = x.masked_fill(~packing.real.unsqueeze(-1), 0.0)
        x = blocks.enter(wav2vec2, x, packing)
        checkpointing = self.training and self.gradient_checkpointing
        scored = packing.row_of(masked)
        only = None if with_hidden or unmasked is not None else scored
        x = blocks.run_blocks(wav2vec2, x, packing, copies, checkpointing, only)
        x = blocks.leave(wav2vec2, x)
        if only is not None:
            return None, head(x), None
        others = None
        if unmasked is not None:
            others = head(x.index_select(0, packing.row_of(unmasked)))
        return x, head(x.index_select(0, scored)), others

    @cached_property
    def _compiled(self) -> Any:
        return torch.compile(self._network, dynamic=True)

    def states(
        self, waveforms: Iterable[Tensor], dtype: torch.dtype
    ) -> Iterator[list[Tensor]]:
        """Yield every state ``[B, T, D]`` of batches ``[B, n]``, in ``dtype``.

        Each batch is of equal lengths; nothing is masked. Those of
        :func:`~espnet2_lamer.asr.upstream.hidden_states`, for a model whose frozen
        weights :meth:`keep_frozen` prepared.
        """
        with working_copies(self._copied, dtype):
            for wavs in waveforms:
                yield self._states(wavs, dtype)

    def _states(self, waveforms: Tensor, dtype: torch.dtype) -> list[Tensor]:
        features, _ = self.wav2vec2.feature_extractor(waveforms, None, dtype)
        batch, frames = features.shape[:2]
        packing = Packing(batch, frames, features.new_full((batch,), frames), None)
        x = blocks.project(self.wav2vec2, features)
        found = [blocks.enter(self.wav2vec2, x, packing)]
        bias = blocks.position_bias(self.wav2vec2, found[0], packing)
        for layer in self.wav2vec2.encoder.transformer.layers:
            found.append(blocks.run_block(layer, found[-1], packing, None, bias))
        if self.final_norm:
            found[-1] = blocks.leave(self.wav2vec2, found[-1])
        return [packing.unpack(state) for state in found]
