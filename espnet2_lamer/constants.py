"""The sampling rate of all speech, and how many HuBERT frames an utterance has."""

#: In Hz.
SAMPLE_RATE = 16000
#: Samples that one frame sees, and samples between frames, at 16 kHz.
RECEPTIVE_FIELD = 400
STRIDE = 320


def num_frames(num_samples: int) -> int:
    """Return the number of HuBERT frames (50 Hz) of ``num_samples`` at 16 kHz.

    The seven convolutions have a receptive field of 400 and a stride of 320 samples,
    so ``T = (n - 400) // 320 + 1``; shorter audio has no frame.
    """
    if num_samples < RECEPTIVE_FIELD:
        return 0
    return (num_samples - RECEPTIVE_FIELD) // STRIDE + 1


#: What trains with an ASR head: nothing beside it, the frozen upstream of ML-SUPERB;
#: LoRA experts and routers; the transformer as well; LoRA that it is given for this, in
#: upper layers one of each language.
LID_ROUTED = "lid_routed"
TUNES = ("head", "experts", "all", LID_ROUTED)
#: What a frozen upstream is in while a head trains.
UPSTREAM_MODES = ("eval", "train")
