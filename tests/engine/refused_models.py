"""Models that cannot be run, as their ``config.json`` describes them, and the words for what is missing.

The descriptions have the fields that the published ones have, with small sizes.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Refused(NamedTuple):
    """``models``: published ones of this kind; ``missing``: what the message must name."""

    models: str
    description: dict[str, Any]
    missing: str


SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64,
}  # fmt: skip
TEXT_MODEL = {"model_type": "qwen2", **SIZES}


def _remote(model_type: str, architecture: str) -> dict[str, Any]:
    """A model whose code comes with its checkpoint."""
    return {
        "model_type": model_type,
        "architectures": [architecture],
        "auto_map": {
            "AutoConfig": f"configuration_{model_type}.Config",
            "AutoModelForCausalLM": f"modeling_{model_type}.{architecture}",
        },
        **SIZES,
    }


REFUSED = {
    "remote code (Qwen 1)": Refused(
        "Qwen-7B, Qwen-7B-Chat",
        _remote("qwen", "QWenLMHeadModel"),
        "its architecture (qwen) is code that comes with the checkpoint (trust_remote_code), which is never run here; "
        "use Qwen1.5, Qwen2 or Qwen2.5 (model_type qwen2) or Qwen3 (qwen3)",
    ),
    "remote code (ChatGLM)": Refused(
        "ChatGLM-6B, ChatGLM2, ChatGLM3, glm-4-9b-chat",
        _remote("chatglm", "ChatGLMForConditionalGeneration"),
        "its architecture (chatglm) is code that comes with the checkpoint (trust_remote_code), which is never run "
        "here; use GLM-4 as converted for transformers (names ending in -hf, model_type glm) or GLM-4-0414 (glm4)",
    ),
    "remote code (others)": Refused(
        "Baichuan2, InternLM2",
        _remote("baichuan", "BaichuanForCausalLM"),
        "its architecture (baichuan) is code that comes with the checkpoint (trust_remote_code), which is never run "
        "here; use a model whose architecture transformers carries",
    ),
    "unknown architecture": Refused(
        "models newer than transformers",
        {"model_type": "llama9000", **SIZES},
        "does not carry the architecture llama9000; a newer transformers may",
    ),
    "quantised weights": Refused(
        "AWQ, GPTQ, FP8, bitsandbytes checkpoints",
        {**TEXT_MODEL, "quantization_config": {"quant_method": "awq", "bits": 4}},
        "quantised weights (awq); use the checkpoint in bfloat16, float16 or float32 that it was made from",
    ),
    "multi-head latent attention": Refused(
        "DeepSeek V2, V3, R1",
        {"model_type": "deepseek_v3", **SIZES, "kv_lora_rank": 8, "q_lora_rank": 8},
        "multi-head latent attention (kv_lora_rank = 8)",
    ),
    "linear attention": Refused(
        "Qwen3-Next",
        {"model_type": "qwen3_next", **SIZES, "layer_types": ["linear_attention", "full_attention"]},
        "linear attention layers",
    ),
    "state-space layers": Refused(
        "Mamba, Jamba, Falcon-H1, Granite 4 hybrids",
        {"model_type": "mamba", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
        "state-space (Mamba) layers",
    ),
    "convolution layers": Refused(
        "LFM2", {"model_type": "lfm2", **SIZES, "layer_types": ["conv", "full_attention"]}, "convolution layers"
    ),
    "recurrences": Refused(
        "RecurrentGemma, RWKV", {"model_type": "recurrent_gemma", **SIZES}, "recurrent layers"
    ),
    "ALiBi": Refused(
        "BLOOM, MPT, Falcon with alibi",
        {"model_type": "bloom", "vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 2},
        "ALiBi position biases",
    ),
    "attention sinks": Refused(
        "gpt-oss",
        {"model_type": "gpt_oss", **SIZES, "head_dim": 16, "num_local_experts": 4},
        "attention sinks",
    ),
    "attention within chunks": Refused(
        "Llama 4's text model",
        {"model_type": "llama4_text", **SIZES, "layer_types": ["chunked_attention", "full_attention"]},
        "attention within chunks of the context",
    ),
    "shared keys and values": Refused(
        "Gemma 3n's text model",
        {"model_type": "gemma3n_text", **SIZES, "num_kv_shared_layers": 1, "layer_types": ["full_attention"] * 2},
        "layers that share keys and values (num_kv_shared_layers = 1)",
    ),
    "an encoder": Refused(
        "T5, BART", {"model_type": "t5", "vocab_size": 64, "d_model": 32}, "an encoder beside its decoder"
    ),
    "attention in both directions": Refused(
        "BERT, EmbeddingGemma", {"model_type": "bert", **SIZES}, "attention in both directions"
    ),
    "images, sound": Refused(
        "Qwen2-VL, Llava, Mistral Small 3.1, Llama 3.2 Vision",
        {"model_type": "llava", "text_config": TEXT_MODEL, "vision_config": {"model_type": "clip_vision_model"}},
        "parts beside its text decoder (vision)",
    ),
    "rotary positions that depend on the length": Refused(
        "Phi-3 128k, Phi-4-mini (longrope), dynamic NTK",
        {"model_type": "phi3", **SIZES, "original_max_position_embeddings": 32, "pad_token_id": None,
         "rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}},
        "rotary positions of kind longrope, which change with the length of a sequence",
    ),
    "a mixture of experts with windows": Refused(
        "Mixtral with a window narrower than its context",
        {"model_type": "mixtral", **SIZES, "sliding_window": 16, "num_local_experts": 4},
        "a sliding window of 16 tokens, which only the fused decoder computes, and that lacks the architecture mixtral "
        "with its mixture of experts",
    ),
    "scaled logits": Refused(
        "Cohere, Granite 3",
        {"model_type": "cohere", **SIZES, "logit_scale": 0.5},
        "logit_scale = 0.5, which only the fused decoder computes, and that lacks the architecture cohere",
    ),
    "an attention of its own": Refused(
        "Falcon, StableLM, GPT-J",
        {"model_type": "stablelm", **SIZES},
        "an attention of its own (stablelm), in whose place no other can be put",
    ),
}  # fmt: skip
