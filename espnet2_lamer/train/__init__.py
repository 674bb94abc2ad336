"""Batches, masks, schedules: what ESPnet's trainer is fed with."""
