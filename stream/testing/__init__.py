"""Fakes that ship with Volcast and are tested: an exchange and a broker, real servers on loopback, and a market."""
