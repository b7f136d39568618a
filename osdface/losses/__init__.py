"""The losses of the paper, a file for each kind, by equation number."""
