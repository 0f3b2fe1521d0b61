"""Candles from the exchange or a file, as rows that can be learnt from and forecasts that can be scored."""
