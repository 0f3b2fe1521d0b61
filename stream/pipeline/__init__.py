"""The asyncio pipeline: intake (is it due?) → processing (step, predict, commit) → publishing (publish, acknowledge).

Candles go in this direction only. The core decides and the adapters wrap libraries; this package only says what waits
for what.
"""
