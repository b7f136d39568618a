"""Commands as jobs of a Ray cluster, through Ray's own Job API: stock `ray job` sees the same ones."""
