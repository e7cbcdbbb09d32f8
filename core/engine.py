"""``from core.engine import InferenceEngine``: the engine's front door, under the name of the quick start."""

from engine.inference import GenerationResult, GenerationResults, InferenceEngine

__all__ = ["GenerationResult", "GenerationResults", "InferenceEngine"]
