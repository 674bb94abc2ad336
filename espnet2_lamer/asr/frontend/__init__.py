"""Frontends that put a frozen self-supervised model in front of an ESPnet model."""
