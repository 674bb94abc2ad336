"""Masked prediction of units: masks, loss and the ESPnet model."""
