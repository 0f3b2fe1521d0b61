"""Evaluations for people: HTML, figures and the terminal's tables."""
