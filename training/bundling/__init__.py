"""What a bundle carries besides its network, and `volcast train`, which computes it."""
