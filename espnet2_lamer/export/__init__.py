"""Trained models for others: the ways out of an experiment directory."""
