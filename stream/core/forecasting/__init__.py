"""From candles to a volatility: features, targets, the bundle's contract, baselines, intervals, decay."""
