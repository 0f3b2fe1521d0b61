"""Losses, tests of forecasts and figures, from a panel of forecasts."""
