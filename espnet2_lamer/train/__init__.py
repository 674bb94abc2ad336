"""Batches, masks, schedules: what ESPnet's trainer is fed with."""

from espnet2_lamer.compat import before_espnet

before_espnet()
