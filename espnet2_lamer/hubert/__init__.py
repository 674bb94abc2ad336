"""Masked prediction of units: masks, loss and the ESPnet model."""

from espnet2_lamer.compat import before_espnet

before_espnet()
