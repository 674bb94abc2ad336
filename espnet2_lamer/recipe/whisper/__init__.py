"""Stages of ``egs2/lamer_ssl/asr1/run.sh``: LoRA language experts on Whisper."""
