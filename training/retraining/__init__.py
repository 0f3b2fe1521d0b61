"""`volcast retrain`: a challenger from the newest candles, and the gate that decides whether it is promoted."""
