"""Evaluation: units, error rates, language identification, statistics, tables."""
