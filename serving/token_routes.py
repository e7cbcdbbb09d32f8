"""Texts to tokens and back, at OpenAI-like paths and at vLLM's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request

from serving.models import check_model
from serving.protocol import DetokenizeBody, TokenizeBody

if TYPE_CHECKING:
    from serving.server import Server

router = APIRouter(tags=["tokens"])


@router.post("/v1/tokenize")
@router.post("/tokenize", include_in_schema=False)
async def tokenize(body: TokenizeBody, request: Request) -> dict[str, Any]:
    """The tokens of a text, or of a conversation through the model's chat template."""
    server: Server = request.app.state.server
    check_model(server, body.model)
    prompts = server.prompts
    if body.messages is not None:
        tokens = await prompts.chat_tokens(body.messages)
    else:
        tokens = await prompts.text_tokens(body.prompt or "", body.add_special_tokens is not False)
    found: dict[str, Any] = {"count": len(tokens), "max_model_len": server.info.context_tokens, "tokens": tokens}
    if body.return_token_strs:
        found["token_strs"] = [server.token_texts.of(token_id)[0] for token_id in tokens]
    return found


@router.post("/v1/detokenize")
@router.post("/detokenize", include_in_schema=False)
async def detokenize(body: DetokenizeBody, request: Request) -> dict[str, str]:
    """The text of tokens."""
    server: Server = request.app.state.server
    check_model(server, body.model)
    server.prompts.check_ids(body.tokens, "tokens")
    return {"prompt": server.prompts.tokenizer.decode(body.tokens)}
