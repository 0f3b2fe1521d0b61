"""The bundle's contract: what a bundle states about its model, and the refusal of a bundle that cannot be used.

One ONNX file is a model; its metadata key `volcast` holds this contract as JSON. The daemon assumes nothing
about a model that is not stated here, and does not start with a model whose contract it cannot keep.
"""

from __future__ import annotations

import math
from itertools import pairwise

import msgspec
import numpy as np

from stream.core.forecasting import drift, features
from stream.core.forecasting.target import HORIZON_HOURS
from stream.core.forecasting.windows import Array
from stream.errors import InputError

METADATA_KEY = "volcast"
CONTRACT_VERSION = 3
INPUT_SEQUENCE = "sequence"
INPUT_STATIC = "static"
OUTPUT = "volatility"
#: E[σ] of the next 24 h, then σ_h for each horizon.
OUTPUT_WIDTH = 1 + len(HORIZON_HOURS)
#: A training run's network has this output instead: the log of it, without what the run's trees add.
LOG_VOLATILITY = "log_volatility"
#: Range of an hour's log σ: from below the floor of 1e-5 to 37 %, more than any hour that was ever traded.
LOG_SIGMA_RANGE = (-12.0, -1.0)
#: Of the hours from which regimes are taken, a third are low and a fifth are high.
REGIME_QUANTILES = (1 / 3, 4 / 5)
#: Quantiles whose ratio is smaller than this count as one level: a policy's hysteresis would bridge them.
_REGIME_RATIO = 1.25


class ContractError(InputError):
    """The model file is wrong or made for another Volcast, which is the file's fault: refuse to start."""


class Har(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """log E[σ of the next 24 h] = intercept + Σ coefficient × static feature; see
    stream/core/forecasting/baselines.py."""

    names: tuple[str, ...]
    coefficients: tuple[float, ...]
    intercept: float
    #: Multiplies exp(...): mean of realized over exp(fitted) on the training folds.
    retransform: float


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Starting calibration of the interval: out-of-fold residuals log(realized / forecast)."""

    level: float
    low: float
    high: float
    #: The newest 90 days of residuals in time order, hourly; NaN is written as null.
    residuals: tuple[float | None, ...]
    residuals_from: int


class Regimes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where `medium` and `high` begin, hourly σ. In a bundle: quantiles of the realized 24 h volatility over the
    training range of the first symbol."""

    medium_from: float
    high_from: float

    @classmethod
    def of(cls, volatility: Array) -> Regimes:
        """Returns the quantiles of `volatility`, hourly σ, none of them NaN.

        The usual values of a symbol that hardly varies are low, and so is a value that a third of the hours share, such
        as the floor of a price that does not move.
        """
        medium, high = np.quantile(volatility, REGIME_QUANTILES).tolist()
        if high < medium * _REGIME_RATIO:
            return cls(medium * _REGIME_RATIO, medium * _REGIME_RATIO**2)
        if np.count_nonzero(volatility == medium) > 1:
            medium = math.nextafter(medium, math.inf)
        return cls(medium, high)


class Reference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Drift reference of one measure (stream/core/forecasting/drift.py): its quantiles over the training range, and the
    thresholds under which the normed Wasserstein distance usually stays: that of 30 days to these quantiles, and that
    of 10 days to the 90 before them."""

    quantiles: tuple[float, ...]
    threshold: float
    fast_threshold: float


class Usual(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The usual errors of a sound model: those of its out-of-fold forecasts of the next 24 h, one a day.

    Excess: QLIKE less that of `har`, each day's bounded (stream/core/forecasting/serving.py). Ratio: ln(realized /
    forecast).
    """

    excess_mean: float
    excess_deviation: float
    ratio_mean: float
    ratio_deviation: float


class Training(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    symbols: tuple[str, ...]
    #: First and last candle used, labels included: ms, open times.
    trained_from: int
    trained_until: int
    rows: int
    #: sha256 over the candles that were used (training/data/dataset.py).
    data_sha256: str
    seed: int


class Contract(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    contract: int
    features_version: str
    sequence_names: tuple[str, ...]
    static_names: tuple[str, ...]
    sequence_hours: int
    horizons: tuple[int, ...]
    har: Har
    calibration: Calibration
    #: The same for `har`, for the hours in which it is served.
    har_calibration: Calibration
    regimes: Regimes
    #: Factors on the horizons' σ of other symbols than the first, one for each: the tails of their hours are fatter.
    horizon_levels: tuple[float, ...]
    reference: dict[str, Reference]
    usual: Usual
    training: Training
    #: Flat, for people and the model card: "2024.next_24h.model.rmse" and the like.
    scores: dict[str, float]
    #: Makers and their versions.
    versions: dict[str, str]

    def describes(self, symbol: str) -> bool:
        """Returns whether regimes and drift reference are those of this symbol; other symbols use their own history."""
        return symbol == self.training.symbols[0]

    def levels(self, symbol: str) -> tuple[float, ...]:
        """Returns the factors on what the model says of this symbol, in the order of its outputs."""
        return (1.0,) * OUTPUT_WIDTH if self.describes(symbol) else (1.0, *self.horizon_levels)


class Model(msgspec.Struct, frozen=True):
    """A contract and the file that it came in. `version` is the first 12 hex digits of `sha256`."""

    contract: Contract
    sha256: str

    @property
    def version(self) -> str:
        return self.sha256[:12]


def read(metadata: str | None) -> Contract:
    """Returns the contract in a bundle's metadata. Raises `ContractError`, which names what is missing or wrong."""
    if metadata is None:
        raise ContractError(
            f"it has no {METADATA_KEY!r} metadata: not a Volcast bundle; make one with `volcast export`"
        )
    try:
        contract = msgspec.json.decode(metadata, type=Contract)
    except msgspec.DecodeError as error:
        raise ContractError(f"its {METADATA_KEY!r} metadata is not the contract: {error}") from None
    check(contract)
    return contract


def check(contract: Contract) -> None:
    """Raises `ContractError` if the contract contradicts this Volcast, or itself."""
    if contract.contract != CONTRACT_VERSION:
        raise ContractError(f"it follows contract {contract.contract}, this Volcast reads {CONTRACT_VERSION}")
    if contract.features_version != features.VERSION:
        raise ContractError(
            f"it was made for features version {contract.features_version}, this Volcast computes "
            f"{features.VERSION}; train and export again"
        )
    for name, found, expected in (
        ("sequence features", contract.sequence_names, features.SEQUENCE_NAMES),
        ("static features", contract.static_names, features.STATIC_NAMES),
        ("sequence length", contract.sequence_hours, features.SEQUENCE_HOURS),
        ("horizons", contract.horizons, HORIZON_HOURS),
    ):
        if found != expected:
            raise ContractError(f"its {name} are {found}, this Volcast's are {expected}")
    har = contract.har
    if len(har.names) != len(har.coefficients) or not set(har.names) <= set(contract.static_names):
        raise ContractError("its har coefficients do not match static features")
    if not (_finite(*har.coefficients, har.intercept, har.retransform) and har.retransform > 0):
        raise ContractError("its har coefficients are not finite")
    for calibration in (contract.calibration, contract.har_calibration):
        if not (0 < calibration.level < 1 and _finite(calibration.low, calibration.high)):
            raise ContractError("its calibration has no level between 0 and 1")
        if not calibration.low < 0 < calibration.high:
            raise ContractError("its interval does not contain the forecast")
    if len(contract.horizon_levels) != len(HORIZON_HOURS) or not all(0 < f < math.inf for f in contract.horizon_levels):
        raise ContractError("its horizon levels are not one factor for each horizon")
    if not 0 < contract.regimes.medium_from < contract.regimes.high_from < math.inf:
        raise ContractError("its regime thresholds do not rise")
    if set(contract.reference) != set(drift.MEASURES):
        raise ContractError(f"its drift reference is not of {', '.join(drift.MEASURES)}")
    for name, reference in contract.reference.items():
        limits = (reference.threshold, reference.fast_threshold)
        if len(reference.quantiles) != drift.REFERENCE_LEVELS or not _finite(*reference.quantiles, *limits):
            raise ContractError(f"its drift reference of {name} is incomplete")
        if any(a > b for a, b in pairwise(reference.quantiles)) or min(limits) <= 0:
            raise ContractError(f"its drift reference of {name} is not a distribution with thresholds")
    usual = contract.usual
    if not _finite(usual.excess_mean, usual.ratio_mean) or not (
        0 < usual.excess_deviation < math.inf and 0 < usual.ratio_deviation < math.inf
    ):
        raise ContractError("its usual errors have no deviation")
    if not contract.training.symbols:
        raise ContractError("it names no symbol that it learnt from")
    if contract.training.trained_from >= contract.training.trained_until:
        raise ContractError("its training range is empty")


def _finite(*values: float) -> bool:
    return all(math.isfinite(v) for v in values)
