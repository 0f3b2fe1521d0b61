"""Candle files, over polars."""
