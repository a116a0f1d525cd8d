"""Read representations and measure them. Names are imported when first used, so that `import probes` costs nothing."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOME = {
    "Task": "task",
    "InputError": "errors",
    "Encoder": "encoder",
    "load_encoder": "encoder",
    "Batch": "readout",
    "Readout": "readout",
    "Weighted": "readout",
    "Extractor": "extract",
    "States": "extract",
    "tap": "extract",
    "CellProbe": "base",
    "predict_each": "base",
    "check_evaluation": "contract",
    "check_probe": "contract",
    "BagDecoder": "decode.bag",
    "SlotDecoder": "decode.slot",
    "SequenceDecoder": "decode.sequence",
    "LogisticProbe": "linear",
    "RidgeProbe": "linear",
    "MLPProbe": "mlp",
    "AttentionProbe": "pooling",
    "OnlineCode": "codelength",
    "v_information": "codelength",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'probes' has no attribute {name!r}")
    return getattr(import_module(f"probes.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__


if TYPE_CHECKING:
    from probes.base import CellProbe as CellProbe
    from probes.base import predict_each as predict_each
    from probes.codelength import OnlineCode as OnlineCode
    from probes.codelength import v_information as v_information
    from probes.contract import check_evaluation as check_evaluation
    from probes.contract import check_probe as check_probe
    from probes.decode.bag import BagDecoder as BagDecoder
    from probes.decode.sequence import SequenceDecoder as SequenceDecoder
    from probes.decode.slot import SlotDecoder as SlotDecoder
    from probes.encoder import Encoder as Encoder
    from probes.encoder import load_encoder as load_encoder
    from probes.errors import InputError as InputError
    from probes.extract import Extractor as Extractor
    from probes.extract import States as States
    from probes.extract import tap as tap
    from probes.linear import LogisticProbe as LogisticProbe
    from probes.mlp import MLPProbe as MLPProbe
    from probes.pooling import AttentionProbe as AttentionProbe
    from probes.readout import Batch as Batch
    from probes.readout import Readout as Readout
    from probes.readout import Weighted as Weighted
    from probes.task import Task as Task
