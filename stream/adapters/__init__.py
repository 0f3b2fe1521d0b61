"""Adapters: thin layers, each between a port of the pipeline and one outside library."""
