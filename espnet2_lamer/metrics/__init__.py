"""Pure numpy: error rates, intervals and paired tests, CKA, probes, records."""
