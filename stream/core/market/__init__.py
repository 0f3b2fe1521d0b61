"""What comes in: candles, the exchange's dialect, its clock and which candle is due. Below everything else."""
