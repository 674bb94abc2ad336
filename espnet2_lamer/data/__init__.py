"""Data preparation: embedded corpus, manifests, formatting, selection, ML-SUPERB."""
