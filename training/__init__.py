"""Fetching, training, evaluation and backtest. Features and targets come from `stream.core`; there are no others."""
