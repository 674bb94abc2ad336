"""Analysis of a trained model: phone probe, CKA, routing statistics and heat-maps."""
