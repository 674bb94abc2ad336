"""Configuration of a HuBERT with layer-aware mixtures of LoRA experts (Lamer-SSL)."""

from typing import Any

from transformers import HubertConfig

# No activation is called so: a plain ``HubertModel``, which would leave the experts out
# and fill its feed-forward networks with random numbers, fails with these words.
HIDDEN_ACT = "gelu: use AutoModel.from_pretrained(..., trust_remote_code=True)"


class LamerHubertConfig(HubertConfig):
    """Options of :class:`LamerHubertModel` beside those of ``HubertConfig``.

    Args:
        num_experts: LoRA experts of each transformer layer, shallow to deep; 0 leaves
            a layer's feed-forward network as it is, 1 has no router.
        num_experts_per_tok: Experts per frame; ``None`` uses all of them (soft).
        lora_rank: Rank of an expert, one number or one for each layer.
        lora_alpha: An expert's output is scaled by ``lora_alpha / lora_rank``; ``None``
            leaves it as it is.
        lora_dropout: Dropout on the experts' input.
        lora_targets: ``"intermediate_dense"`` and ``"output_dense"`` (experts beside a
            Linear), ``"ffn"`` (experts beside the whole feed-forward network).
        lora_router: ``"ffn"``, one router that all targets of a layer share, or
            ``"projection"``, one per target.
        lora_merge: ``"none"``, or ``"utterance"``: routers' probabilities are averaged
            over an utterance, and the parameters of a layer's experts by these.
        use_selection_bias: Whether routers add a stored bias for the choice of experts.
        final_norm: Whether the last hidden state of a pre-norm model is taken after the
            final LayerNorm.
        kwargs: Options of ``HubertConfig``.
    """

    model_type = "lamer_hubert"

    def __init__(
        self,
        num_experts: list[int] | tuple[int, ...] = (),
        num_experts_per_tok: int | None = 2,
        lora_rank: int | list[int] = 12,
        lora_alpha: float | None = 12.0,
        lora_dropout: float = 0.0,
        lora_targets: list[str] | tuple[str, ...] = (
            "intermediate_dense",
            "output_dense",
        ),
        lora_router: str = "ffn",
        lora_merge: str = "none",
        use_selection_bias: bool = False,
        final_norm: bool = True,
        **kwargs: Any,
    ) -> None:
        self.num_experts = list(num_experts)
        self.num_experts_per_tok = num_experts_per_tok
        self.lora_rank = lora_rank
        self.lora_alpha = lora_alpha
        self.lora_dropout = lora_dropout
        self.lora_targets = list(lora_targets)
        self.lora_router = lora_router
        self.lora_merge = lora_merge
        self.use_selection_bias = use_selection_bias
        self.final_norm = final_norm
        if kwargs.get("hidden_act") == HIDDEN_ACT:
            kwargs["hidden_act"] = "gelu"
        super().__init__(**kwargs)
        # No experts stands for a layer count that is not known before.
        ranks = () if isinstance(lora_rank, int) else lora_rank
        for key, values in (("num_experts", self.num_experts), ("lora_rank", ranks)):
            if values and len(values) != self.num_hidden_layers:
                raise ValueError(
                    f"{key}: found {len(values)} numbers, expected one for each of the "
                    f"{self.num_hidden_layers} layers"
                )

    def to_dict(self) -> dict[str, Any]:
        """Return what is written, for this class alone to read."""
        return super().to_dict() | {"hidden_act": HIDDEN_ACT}
