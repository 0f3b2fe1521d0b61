"""Fetch, dataset, model, fit, evaluate. Features and targets come from `stream.core`; there are no others."""
