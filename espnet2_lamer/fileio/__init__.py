"""Files the recipe reads and writes: atomic writes, hashes, Kaldi-style data dirs."""
