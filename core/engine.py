"""``from core.engine import InferenceEngine``: the engine's front door, under the name of the quick start."""

from engine.errors import DeviceError, EngineError, EngineStoppedError, GenerationError
from engine.inference import InferenceEngine
from engine.results import GenerationMetrics, GenerationResult, GenerationResults
from engine.streams import AsyncTokenStream, TokenStream

__all__ = [
    "AsyncTokenStream",
    "DeviceError",
    "EngineError",
    "EngineStoppedError",
    "GenerationError",
    "GenerationMetrics",
    "GenerationResult",
    "GenerationResults",
    "InferenceEngine",
    "TokenStream",
]
