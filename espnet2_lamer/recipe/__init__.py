"""The stages of ``egs2/lamer_ssl/ssl1/run.sh``."""
