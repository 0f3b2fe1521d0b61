"""What a bundle promises, and the refusal of one that does not keep it.

One ONNX file is a model; its metadata key `volcast` holds this contract as JSON. The daemon believes nothing
about a model that is not written here, and starts with no model whose contract it cannot keep.
"""

from __future__ import annotations

import math
from itertools import pairwise

import msgspec

from stream.core import features
from stream.core.target import HORIZON_HOURS

METADATA_KEY = "volcast"
CONTRACT_VERSION = 1
INPUT_SEQUENCE = "sequence"
INPUT_STATIC = "static"
OUTPUT = "volatility"
#: E[σ] of the next 24 h, then σ_h for each horizon.
OUTPUT_WIDTH = 1 + len(HORIZON_HOURS)
#: Levels at which each feature's reference distribution is stored: 0.005, 0.015, … 0.995.
REFERENCE_LEVELS = 100


class ContractError(ValueError):
    """The model file is wrong or made for another Volcast: the artifact's fault; refuse to start."""


class Har(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """log E[σ of the next 24 h] = intercept + Σ coefficient × static feature; see stream/core/baselines.py."""

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
    """Quantiles of the realized 24 h volatility over the training range, hourly σ."""

    medium_from: float
    high_from: float


class Reference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Drift reference of one feature: its quantiles at (k + ½) / 100, and the calibrated threshold of
    the normed Wasserstein distance between 30 days and these."""

    quantiles: tuple[float, ...]
    threshold: float


class Training(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    symbols: tuple[str, ...]
    #: First and last candle used, labels included: ms, open times.
    trained_from: int
    trained_until: int
    rows: int
    #: sha256 over the candles that were used (training/dataset.py).
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
    regimes: Regimes
    reference: dict[str, Reference]
    training: Training
    #: Flat, for people and the model card: "2024.next_24h.model.rmse" and the like.
    scores: dict[str, float]
    #: Makers and their versions.
    versions: dict[str, str]


class Model(msgspec.Struct, frozen=True):
    """A contract and the file that it came in. `version` is the first 12 hex digits of `sha256`."""

    contract: Contract
    sha256: str

    @property
    def version(self) -> str:
        return self.sha256[:12]


def read(metadata: str | None) -> Contract:
    """The contract in a bundle's metadata; `ContractError` names what is missing or wrong."""
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
    """`ContractError` where the contract contradicts this Volcast, or itself."""
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
    calibration = contract.calibration
    if not (0 < calibration.level < 1 and _finite(calibration.low, calibration.high)):
        raise ContractError("its calibration has no level between 0 and 1")
    if not calibration.low < 0 < calibration.high:
        raise ContractError("its interval does not contain the forecast")
    if not 0 < contract.regimes.medium_from < contract.regimes.high_from < math.inf:
        raise ContractError("its regime thresholds do not rise")
    if set(contract.reference) != set(contract.static_names):
        raise ContractError("its drift reference does not cover the static features")
    for name, reference in contract.reference.items():
        if len(reference.quantiles) != REFERENCE_LEVELS or not _finite(*reference.quantiles, reference.threshold):
            raise ContractError(f"its drift reference of {name} is incomplete")
        if any(a > b for a, b in pairwise(reference.quantiles)) or reference.threshold <= 0:
            raise ContractError(f"its drift reference of {name} is not a distribution with a threshold")
    if contract.training.trained_from >= contract.training.trained_until:
        raise ContractError("its training range is empty")


def _finite(*values: float) -> bool:
    return all(math.isfinite(v) for v in values)
