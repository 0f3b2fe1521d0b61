"""The asyncio pipeline: intake (is it due?) → processing (step, predict, commit) → speaking (publish, acknowledge).

Arrows go one way. Decisions are the core's, libraries are the adapters'; here is only who waits for whom.
"""
