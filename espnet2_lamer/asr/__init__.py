"""Encoders and frontends for ESPnet's ASR and HuBERT tasks."""
