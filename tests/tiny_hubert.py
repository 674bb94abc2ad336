"""The smallest HuBERT with the real stride (320) and receptive field (400)."""

ARCHITECTURE = {
    "extractor_conv_layer_config": [[8, 10, 5]] + [[8, 3, 2]] * 4 + [[8, 2, 2]] * 2,
    "encoder_embed_dim": 16,
    "encoder_num_layers": 2,
    "encoder_num_heads": 2,
    "encoder_ff_interm_features": 32,
    "encoder_pos_conv_kernel": 8,
    "encoder_pos_conv_groups": 2,
}

#: Merged experts, and another rank in each layer.
MERGED = {
    "allocation": "2,3",
    "rank": "3,1",
    "top_k": None,
    "balance": "importance",
    "merge": "utterance",
}
