"""Features of the frozen convolution stack from disk: same losses, whatever happens."""
