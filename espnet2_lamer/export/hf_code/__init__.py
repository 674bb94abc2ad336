"""Code that travels with a Hugging Face export: needs transformers and torch only."""
