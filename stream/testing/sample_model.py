"""A model without a network: a contract and a simple function, for tests that are not about the network."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream.core.forecasting import drift, features
from stream.core.forecasting.contract import (
    CONTRACT_VERSION,
    Calibration,
    Contract,
    Har,
    Model,
    Reference,
    Regimes,
    Training,
    Usual,
)
from stream.core.forecasting.target import HORIZON_HOURS


def sample_model() -> Model:
    names = features.STATIC_NAMES
    quantiles = tuple(float(q) for q in np.linspace(-1, 1, drift.REFERENCE_LEVELS))
    contract = Contract(
        contract=CONTRACT_VERSION,
        features_version=features.VERSION,
        sequence_names=features.SEQUENCE_NAMES,
        static_names=names,
        sequence_hours=features.SEQUENCE_HOURS,
        horizons=HORIZON_HOURS,
        har=Har(("log_realized_24h", "log_sigma_168h", "log_sigma_720h"), (0.5, 0.8, 0.9), -0.4, 1.05),
        calibration=Calibration(0.9, -0.5, 0.6, (0.1, None), 1_600_000_000_000),
        har_calibration=Calibration(0.9, -0.7, 0.8, (0.2, None), 1_600_000_000_000),
        regimes=Regimes(0.004, 0.008),
        horizon_levels=(1.1, 1.05, 1.06, 1.08),
        reference={name: Reference(quantiles, 0.3, 0.5) for name in drift.MEASURES},
        usual=Usual(-0.01, 0.1, -0.1, 0.4),
        training=Training(("BTCUSDT",), 1_546_300_800_000, 1_704_063_600_000, 100, "0" * 64, 7),
        scores={},
        versions={},
    )
    return Model(contract, "ab" * 32)


def sample_predict(sequence: NDArray[np.float32], static: NDArray[np.float32]) -> NDArray[np.float32]:
    """Computes volatilities from a level, the last 48 hours and the calendar, each row by itself."""
    level = static[:, 0] + 0.5 * static[:, 4] + 0.1 * static[:, -1] + 0.01 * sequence[:, :, 1].sum(axis=1)
    horizons = np.array([0, 0.1, 0.05, 0.02, 0.0], np.float32)
    volatility: NDArray[np.float32] = np.exp(np.clip(level[:, None] + horizons, -11, 0)).astype(np.float32)
    return volatility
