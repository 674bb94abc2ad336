"""Matrices of trainings (systems x seeds): definitions, cells, statistics, tables."""
