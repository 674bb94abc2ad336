"""HuBERT with layer-aware mixtures of LoRA experts (Lamer-SSL, arXiv 2602.12746)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F
from transformers import HubertModel
from transformers.modeling_outputs import BaseModelOutput

from .configuration_lamer_hubert import LamerHubertConfig


class LoRAExperts(nn.Module):
    """Gated sum of N low-rank experts: ``scale * sum_k g_k B_k A_k x``.

    Where they are merged: ``scale * (sum_k g_k B_k) (sum_k g_k A_k) x``.
    """

    def __init__(
        self, in_features: int, out_features: int, num_experts: int, rank: int, config
    ) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.scale = 1.0 if config.lora_alpha is None else config.lora_alpha / rank
        self.merges = config.lora_merge != "none"
        self.dropout = nn.Dropout(config.lora_dropout)
        self.lora_A = nn.Parameter(torch.zeros(num_experts, rank, in_features))
        self.lora_B = nn.Parameter(torch.zeros(out_features, num_experts * rank))

    def forward(self, x: torch.Tensor, gates: torch.Tensor | None) -> torch.Tensor:
        """Map ``[..., d_in]``, gates ``[..., N]`` (None: ones) to ``[..., d_out]``."""
        z = F.linear(self.dropout(x), self.lora_A.flatten(0, 1))
        if gates is None:
            z = self.scale * z
        else:
            z = z.unflatten(-1, (self.num_experts, -1))
            if self.merges:
                z = (z * gates.to(z.dtype).unsqueeze(-1)).sum(-2, keepdim=True)
            z = (z * (self.scale * gates).to(z.dtype).unsqueeze(-1)).flatten(-2)
        return F.linear(z, self.lora_B)


class LoRAExpertLinear(LoRAExperts):
    """A Linear and experts beside it."""

    def __init__(self, base: nn.Linear, *sizes_and_config) -> None:
        super().__init__(base.in_features, base.out_features, *sizes_and_config)
        self.base = base

    def forward(self, x: torch.Tensor, gates: torch.Tensor | None) -> torch.Tensor:
        """As :class:`LoRAExperts`, plus the Linear."""
        return self.base(x) + super().forward(x, gates)


class Router(nn.Module):
    """Softmax over the experts of a frame, and the top-k of them."""

    def __init__(self, dim: int, num_experts: int, config) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok or num_experts
        self.weight = nn.Parameter(torch.zeros(num_experts, dim))
        bias = torch.zeros(num_experts) if config.use_selection_bias else None
        self.register_buffer("selection_bias", bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map frames ``[..., dim]`` to float32 gates ``[..., N]``, 0 if not chosen."""
        with torch.autocast(x.device.type, enabled=False):
            probs = torch.softmax(x.float() @ self.weight.float().t(), dim=-1)
        if self.top_k >= probs.shape[-1]:
            return probs
        scores = probs.detach()
        if self.selection_bias is not None:
            scores = scores + self.selection_bias.float()
        chosen = scores.topk(self.top_k, dim=-1).indices
        kept = probs.gather(-1, chosen)
        # A single expert keeps its probability: renormalised, it would be 1.
        if self.top_k > 1:
            kept = kept / kept.sum(-1, keepdim=True)
        return torch.zeros_like(probs).scatter(-1, chosen, kept)


class LamerHubertFeedForward(nn.Module):
    """HuBERT's feed-forward network with routed experts."""

    def __init__(
        self, feed_forward: nn.Module, num_experts: int, rank: int, config
    ) -> None:
        super().__init__()
        options = num_experts, rank, config
        targets, first = config.lora_targets, feed_forward.intermediate_dense
        last = feed_forward.output_dense
        self.intermediate_act_fn = feed_forward.intermediate_act_fn
        self.intermediate_dropout = feed_forward.intermediate_dropout
        self.output_dropout = feed_forward.output_dropout
        self.intermediate_dense, self.output_dense = first, last
        if "intermediate_dense" in targets:
            self.intermediate_dense = LoRAExpertLinear(first, *options)
        if "output_dense" in targets:
            self.output_dense = LoRAExpertLinear(last, *options)
        self.ffn_experts = None
        if "ffn" in targets:
            sizes = first.in_features, last.out_features
            self.ffn_experts = LoRAExperts(*sizes, *options)
        self.routers = nn.ModuleDict()
        self.one_router = config.lora_router == "ffn"
        self.merges = config.lora_merge != "none"
        if num_experts > 1:
            for name in ("ffn",) if self.one_router else targets:
                dim = (last if name == "output_dense" else first).in_features
                self.routers[name] = Router(dim, num_experts, config)

    def _gates(self, name: str, x: torch.Tensor) -> torch.Tensor | None:
        if name not in self.routers:
            return None
        gates = self.routers[name](x)
        return gates.mean(-2, keepdim=True).expand_as(gates) if self.merges else gates

    def _linear(
        self, name: str, x: torch.Tensor, gates: torch.Tensor | None
    ) -> torch.Tensor:
        module = getattr(self, name)
        if not isinstance(module, LoRAExpertLinear):
            return module(x)
        return module(x, gates if self.one_router else self._gates(name, x))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map ``[B, T, D]`` to ``[B, T, D]``."""
        gates = self._gates("ffn", hidden_states)
        h = self._linear("intermediate_dense", hidden_states, gates)
        h = self.intermediate_dropout(self.intermediate_act_fn(h))
        y = self._linear("output_dense", h, gates)
        if self.ffn_experts is not None:
            y = y + self.ffn_experts(hidden_states, gates)
        return self.output_dropout(y)


class LamerHubertModel(HubertModel):
    """``HubertModel`` whose feed-forward networks have routed LoRA experts.

    ``hidden_states`` has L + 1 entries: 0 is the transformer's input, k the output of
    layer k; with ``config.final_norm`` the last one of a pre-norm model comes after the
    final LayerNorm (versions of transformers differ there, this class does not).

    A padded batch needs its ``attention_mask``. A model whose first convolution
    normalises over time (``feat_extract_norm: group``), or whose experts are merged
    over an utterance, then runs one utterance at a time: padding would change means.
    """

    config_class = LamerHubertConfig

    def __init__(self, config: LamerHubertConfig) -> None:
        super().__init__(config)
        counts = config.num_experts or [0] * config.num_hidden_layers
        ranks = config.lora_rank
        if isinstance(ranks, int):
            ranks = [ranks] * len(counts)
        sizes = zip(self.encoder.layers, counts, ranks, strict=True)
        for layer, count, rank in sizes:
            if count:
                layer.feed_forward = LamerHubertFeedForward(
                    layer.feed_forward, count, rank, config
                )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        # As LoRA: A random, B zero, so that experts begin as nothing.
        if isinstance(module, LoRAExperts):
            bound = module.lora_A.shape[-1] ** -0.5
            nn.init.uniform_(module.lora_A, -bound, bound)
            nn.init.zeros_(module.lora_B)
        elif isinstance(module, Router):
            bound = module.weight.shape[-1] ** -0.5
            nn.init.uniform_(module.weight, -bound, bound)
            if module.selection_bias is not None:
                nn.init.zeros_(module.selection_bias)

    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        mask_time_indices: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> tuple | BaseModelOutput:
        """Encode waveforms ``[B, n]`` as the feature extractor gives them.

        ``attention_mask [B, n]`` is 1 for real samples, ``mask_time_indices [B, T]``
        tells frames to replace by the mask embedding; other arguments are
        transformers'.

        Returns:
            ``last_hidden_state [B, T, D]`` (frames beyond an utterance are undefined)
            and, if asked for, ``hidden_states`` and ``attentions``.
        """
        config = self.config
        if return_dict is None:
            return_dict = getattr(config, "return_dict", True)
        options = {
            "output_attentions": config.output_attentions
            if output_attentions is None
            else output_attentions,
            "output_hidden_states": config.output_hidden_states
            if output_hidden_states is None
            else output_hidden_states,
        }
        means = config.feat_extract_norm == "group" or config.lora_merge != "none"
        encode = self._encode
        if means and attention_mask is not None and not attention_mask.all():
            encode = self._one_by_one
        outputs = encode(input_values, attention_mask, mask_time_indices, options)
        return outputs if return_dict else outputs.to_tuple()

    def _encode(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None,
        mask_time_indices: torch.Tensor | None,
        options: dict,
    ) -> BaseModelOutput:
        with self._last_block(options) as raw:
            outputs = super().forward(
                input_values,
                attention_mask=attention_mask,
                mask_time_indices=mask_time_indices,
                return_dict=True,
                **options,
            )
        states = outputs.hidden_states
        if states is not None and states[-1] is not None:
            last = raw[0] if raw else outputs.last_hidden_state
            outputs.hidden_states = (*states[:-1], last)
        return outputs

    @contextmanager
    def _last_block(self, options: dict) -> Iterator[list]:
        """Keep the last block's output where ``hidden_states`` is to end with it."""
        raw: list[torch.Tensor] = []
        if self.config.final_norm or not options["output_hidden_states"]:
            yield raw
            return
        hook = self.encoder.layers[-1].register_forward_hook(
            lambda module, args, output: raw.append(
                output[0] if isinstance(output, tuple) else output
            )
        )
        try:
            yield raw
        finally:
            hook.remove()

    def _one_by_one(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor,
        mask_time_indices: torch.Tensor | None,
        options: dict,
    ) -> BaseModelOutput:
        if options["output_attentions"]:
            raise ValueError(
                "output_attentions: this model runs the utterances of a padded batch "
                "one by one; give them one at a time"
            )
        rows = []
        for row, samples in enumerate(attention_mask.sum(-1).tolist()):
            masked = None
            if mask_time_indices is not None:
                count = int(self._get_feat_extract_output_lengths(samples))
                masked = mask_time_indices[row : row + 1, :count]
            wave = input_values[row : row + 1, :samples]
            rows.append(self._encode(wave, None, masked, options))
        frames = int(self._get_feat_extract_output_lengths(input_values.shape[1]))

        def stack(states: Sequence) -> torch.Tensor | None:
            if states[0] is None:
                return None
            return torch.cat([F.pad(x, (0, 0, 0, frames - x.shape[1])) for x in states])

        hidden_states = None
        if rows[0].hidden_states is not None:
            by_layer = zip(*(row.hidden_states for row in rows), strict=True)
            hidden_states = tuple(stack(states) for states in by_layer)
        return BaseModelOutput(
            last_hidden_state=stack([row.last_hidden_state for row in rows]),
            hidden_states=hidden_states,
        )
