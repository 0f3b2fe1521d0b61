"""One module a command, and what commands share. They know every package; nobody imports them."""
