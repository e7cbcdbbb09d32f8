"""What clients send: OpenAI's completions and chat, the short endpoints, tokens. Nothing is ignored.

A field that is not here is refused by its name. Of those in :data:`UNSUPPORTED` a value passes that changes nothing.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from scheduler.request import MOST_LOGPROBS

#: fields of OpenAI's and vLLM's APIs that ask for what there is not, and the values that ask for nothing
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "store": (None, False),
    "metadata": (None, {}),
    "service_tier": (None, "auto", "default"),
    "reasoning_effort": (None, "none"),
    "verbosity": (None,),
    "web_search_options": (None,),
    "best_of": (None, 1),
    "suffix": (None, ""),
    "length_penalty": (None, 1, 1.0),
    "use_beam_search": (None, False),
    "skip_special_tokens": (None, True),
    "spaces_between_special_tokens": (None, True),
    "include_stop_str_in_output": (None, False),
    "truncate_prompt_tokens": (None,),
    "prompt_logprobs": (None,),
    "add_generation_prompt": (None, True),
    "continue_final_message": (None, False),
    "return_token_ids": (None, False),
    "logits_processors": (None, []),
    # of messages
    "name": (None,),
    "refusal": (None,),
    "annotations": (None, []),
    "tool_calls": (None, []),
    "tool_call_id": (None,),
}

#: the most choices of a prompt
MOST_CHOICES = 128
TokenId = Annotated[int, Field(ge=0)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
Text = Annotated[str, Field(min_length=1)]
Prompt = Text | TokenIds
Count = Annotated[int, Field(ge=1, le=1 << 30)]


class Body(BaseModel):
    """A JSON object whose fields are all known, and of exactly the types that they should be."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _drop_what_asks_for_nothing(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if not _asks_for_nothing(name, value)}


def _asks_for_nothing(name: str, value: Any) -> bool:
    return any(value == nothing and type(value) is type(nothing) for nothing in UNSUPPORTED.get(name, ()))


class SamplingBody(Body):
    """How tokens are chosen, and when they end. ``None`` is the default of the endpoint."""

    model: str | None = None
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=1 << 30, description="0 and -1 keep all tokens")
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    stop: Text | Annotated[list[Text], Field(max_length=64)] | None = None
    stop_token_ids: list[TokenId] | None = None
    ignore_eos: bool | None = None
    max_tokens: Count | None = None
    min_tokens: int | None = Field(None, ge=0)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    priority: int | None = Field(None, ge=-(1 << 31), lt=1 << 31, description="a smaller number is more important")
    user: str | None = Field(None, max_length=256)
    timeout: float | None = Field(None, gt=0, description="seconds that the request may take")


class StreamOptions(Body):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class JsonSchema(Body):
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_a_schema_where_it_needs_one(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("'json_schema' goes with the type json_schema, and only with that")
        if self.json_schema is not None and self.json_schema.schema_ is None:
            raise ValueError("'json_schema' has no 'schema'")
        return self

    @property
    def schema_text(self) -> str:
        """The JSON schema, as JSON."""
        return json.dumps(self.json_schema.schema_ if self.json_schema is not None else None)


class OpenAIBody(SamplingBody):
    """What both of OpenAI's endpoints take."""

    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _streams_where_it_says_how(self) -> OpenAIBody:
        if self.stream_options is not None and not self.stream:
            raise ValueError("'stream_options' goes with 'stream': true")
        return self


class CompletionBody(OpenAIBody):
    """``POST /v1/completions``"""

    prompt: Prompt | Annotated[list[Text] | list[TokenIds], Field(min_length=1)]
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    echo: bool | None = None
    add_special_tokens: bool | None = Field(None, description="what the tokenizer puts around a text")

    @model_validator(mode="after")
    def _knows_all_logprobs(self) -> CompletionBody:
        if self.echo and self.logprobs is not None:
            raise ValueError("'echo' with 'logprobs' is not supported: prompts have no log-probabilities here")
        return self


class ContentPart(Body):
    type: Literal["text"]
    text: str


class Message(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ContentPart]

    def for_template(self) -> dict[str, str]:
        """As chat templates know messages: a developer's is the system's, parts are put together."""
        content = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class ChatBody(OpenAIBody):
    """``POST /v1/chat/completions``"""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="for the model's chat template")

    @model_validator(mode="after")
    def _says_each_thing_once(self) -> ChatBody:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("'top_logprobs' goes with 'logprobs': true")
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise ValueError("'max_tokens' and 'max_completion_tokens' differ; give one of them")
        return self

    @property
    def most_tokens(self) -> int | None:
        """Tokens of the answer, at most."""
        return self.max_completion_tokens or self.max_tokens


class GenerateBody(SamplingBody):
    """``POST /generate`` and ``/generate_stream``"""

    prompt: Prompt
    stream: bool | None = None


class BatchBody(SamplingBody):
    """``POST /batch_generate``"""

    prompts: Annotated[list[Prompt], Field(min_length=1)]


class TokenizeBody(Body):
    """``POST /v1/tokenize``: of a text, or of a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _has_one_of_them(self) -> TokenizeBody:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give 'prompt' or 'messages'")
        if self.messages is not None and self.add_special_tokens is not None:
            raise ValueError("'add_special_tokens' goes with 'prompt': a chat template puts in its own")
        return self


class DetokenizeBody(Body):
    """``POST /v1/detokenize``"""

    model: str | None = None
    tokens: list[TokenId]


def _fields(kind: type[Body]) -> set[str]:
    names = {field.alias or name for name, field in kind.model_fields.items()}
    return names.union(*map(_fields, kind.__subclasses__()))


#: every field there is, for messages
FIELDS = sorted(_fields(Body))
