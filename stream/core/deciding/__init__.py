"""From a forecast to a decision: the risk policy, and the keyed operator that carries a symbol's state."""
