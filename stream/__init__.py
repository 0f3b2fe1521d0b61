"""The live path. Floors: core (pure) < ports < adapters < pipeline < the door (`__main__`)."""
