"""Fakes that are shipped and tested: an exchange, a market and a broker, real servers on loopback."""
