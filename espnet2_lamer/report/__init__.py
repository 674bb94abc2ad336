"""Pages that open offline: what a run found, and what is inside a model."""
