"""ESPnet with the core change gives what this package gives: run with both on the path.

The encoder, with its experts moved off zero, on the same weights and masks; and the
losses of both models on it.
"""

import espnet2
import torch
from espnet2.tasks.hubert import HubertTask, encoder_choices, model_choices

NATIVE = encoder_choices.get_class("lamer_hubert"), model_choices.get_class("lamer")
assert NATIVE[0].__module__ == "espnet2.asr.encoder.lamer_hubert_encoder", espnet2

from espnet2_lamer.asr.encoder.lamer_hubert import LamerHubertEncoder  # noqa: E402
from espnet2_lamer.hubert.espnet_model import LamerHubertPretrainModel  # noqa: E402

UNITS = 5
SIZES = {
    "extractor_mode": "layer_norm",
    "extractor_conv_bias": True,
    "extractor_conv_layer_config": [[8, 10, 5], [8, 3, 4], [8, 4, 4], [8, 4, 4]],
    "encoder_embed_dim": 32,
    "encoder_pos_conv_kernel": 4,
    "encoder_pos_conv_groups": 2,
    "encoder_num_layers": 2,
    "encoder_num_heads": 2,
    "encoder_ff_interm_features": 48,
    "encoder_layer_norm_first": True,
    "final_dim": 8,
    "num_classes": UNITS,
    "normalize_waveform": True,
    "lamer": {"allocation": "3,4", "rank": 2, "alpha": 3.0},
}
NO_DROPOUT = {
    f"encoder_{name}": 0.0
    for name in ("projection_dropout", "attention_dropout", "dropout", "layer_drop")
}


def main() -> None:
    """Compare hidden states, logits, loss and balance term."""
    torch.manual_seed(0)
    ours = LamerHubertEncoder(**SIZES)
    for name, parameter in ours.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    # Through ESPnet's own parser and task.
    args = HubertTask.get_parser().parse_args(
        ["--encoder", "lamer_hubert", "--model", "lamer", "--input_size", "1"]
    )
    args.encoder_conf = SIZES | NO_DROPOUT
    del args.encoder_conf["num_classes"]
    args.num_classes, args.normalize = UNITS, None
    units = [str(unit) for unit in range(UNITS)]
    args.token_list = [*units, "<unk>", "<sos/eos>"]
    native = HubertTask.build_model(args)
    assert (type(native.encoder), type(native)) == NATIVE
    pretrained = native.encoder.hubert_pretrain_model
    found = pretrained.load_state_dict(ours.hubert_pretrain_model.state_dict())
    assert not found.missing_keys and not found.unexpected_keys
    trains = [
        {name for name, p in model.named_parameters() if p.requires_grad}
        for model in (ours.hubert_pretrain_model, pretrained)
    ]
    assert trains[0] == trains[1]

    lengths = torch.tensor([16000, 11200])
    speech = torch.randn(2, 16000)
    frames = native.encoder.frame_lengths(lengths)
    text = torch.randint(0, UNITS, (2, int(frames[0])))
    mask = torch.rand(text.shape) < 0.5
    mask &= torch.arange(text.shape[1]) < frames[:, None]
    pretrained.mask_generator.forward = lambda x, padding: (
        torch.where(mask[..., None], pretrained.mask_generator.mask_embedding, x),
        mask,
    )
    states = [ours.eval()(speech, lengths, mask).hidden]
    transformer = pretrained.wav2vec2.encoder.transformer
    transformer.register_forward_hook(lambda *call: states.append(call[2]))
    indices = torch.nn.utils.rnn.pad_sequence(
        [row.nonzero().squeeze(-1) for row in mask], True, -1
    )
    reference = LamerHubertPretrainModel(ours, args.token_list).eval()
    expected, figures, weight = reference(speech, lengths, text, frames, indices)
    native.eval()
    loss, stats, _ = native(speech, lengths, text, frames)
    real = torch.arange(text.shape[1]) < frames[:, None]
    torch.testing.assert_close(states[1][real], states[0][real], atol=1e-5, rtol=1e-4)
    assert figures["balance"] > 1.0
    torch.testing.assert_close(stats["balance"][0], figures["balance"])
    # ESPnet's loss is a sum over masked frames, and counts frozen features.
    features = pretrained.wav2vec2.feature_extractor
    normal = ours.hubert_pretrain_model.wav2vec2.feature_extractor(speech, lengths)[0]
    assert sum(p.requires_grad for p in features.parameters()) == 0
    penalty = 10.0 * normal.pow(2).mean()
    torch.testing.assert_close(
        loss[0] / weight - penalty, expected, atol=1e-4, rtol=1e-4
    )
    print("the same")


if __name__ == "__main__":
    main()
