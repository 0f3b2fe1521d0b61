"""Market data: candles, the exchange's wire format, its clock and which candle is due. The lowest package."""
