"""LoRA language experts on a frozen Whisper: experts, MoLE, distilled student."""
