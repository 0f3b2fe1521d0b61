"""Candles from the exchange or a file, as rows to train on; and the panel of forecasts to be scored."""
