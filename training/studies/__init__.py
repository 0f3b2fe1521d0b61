"""What the drift signals are worth: how often they alarm, and which changes they find."""
