"""Pseudo-labels: teacher features, k-means codebook, units and their quality."""
