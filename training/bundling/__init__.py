"""What a bundle carries beside its network, and `volcast train`, which gathers it."""
