"""A model's chat template: messages, tools and documents to the one text that the model is prompted with."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from typing import Any, Final

import msgspec
from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment

from penstock.errors import InvalidJob
from penstock.messages import Job, Message, Tool, ToolCall

_COMMENT: Final = re.compile(r"\{#.*?#\}", re.DOTALL)


class ChatTemplate:
    """A model's chat template in a sandbox, with the helpers that templates of the field expect."""

    def __init__(
        self, source: str, special_tokens: dict[str, str], with_tools: ChatTemplate | None = None
    ) -> None:
        """Compile the template.

        Args:
            with_tools: renders the jobs with tools, where the model has another template for those.
        """
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        helpers: dict[str, Any] = {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        environment.globals.update(helpers)
        self._template = environment.from_string(source)
        self._variables = find_undeclared_variables(environment.parse(source))
        self._special_tokens = special_tokens
        self._with_tools = with_tools
        self.source = _COMMENT.sub("", source) + (with_tools.source if with_tools is not None else "")
        """Without its comments; of both, where there is another one for jobs with tools."""

    @classmethod
    def load(cls, folder: Path, config: dict[str, Any]) -> ChatTemplate | None:
        """From the folder's .jinja files, else from tokenizer_config.json; None where the model has none.

        Of several named templates, as transformers takes them, `default` and `tool_use`.
        """
        source = _read(folder / "chat_template.jinja") or config.get("chat_template")
        tool_use = _read(folder / "additional_chat_templates" / "tool_use.jinja")
        if isinstance(source, list):
            named = {entry["name"]: entry["template"] for entry in source}
            source, tool_use = named.get("default"), tool_use or named.get("tool_use")
        if not isinstance(source, str):
            return None
        special = _special_tokens(config)
        return cls(source, special, cls(tool_use, special) if tool_use else None)

    def takes(self, variable: str) -> bool:
        """Whether the template reads this variable at all."""
        also = self._with_tools is not None and self._with_tools.takes(variable)
        return also or variable in self._variables

    def render(self, job: Job) -> str:
        """The job's conversation as one text; where it is to be answered, ready for the assistant's turn.

        Raises:
            InvalidJob: with the template's own words where it refuses the conversation.
        """
        assert job.messages is not None
        if job.tools and self._with_tools is not None:
            return self._with_tools.render(job)
        text = self._render(job, job.messages)
        return _up_to(text, job.messages[-1].text) if job.continue_final_message else text

    def _render(self, job: Job, messages: list[Message]) -> str:
        offered: dict[str, Any] = {"tools": job.tools, "documents": job.documents}
        given = {name: value for name, value in offered.items() if value is not None}
        for name, value in given.items():
            if value and name not in self._variables:
                raise InvalidJob(f"this model's chat template takes no `{name}`")
        variables = job.chat_template_kwargs
        reserved = {"messages", "add_generation_prompt", *given, *self._special_tokens} & variables.keys()
        if reserved:
            raise InvalidJob(f"`chat_template_kwargs` may not set {', '.join(sorted(reserved))}")
        if job.tools is not None:
            given["tools"] = [_tool_dict(tool) for tool in job.tools]
        # Templates of the field ask whether `tools` is none, not whether it is there.
        names = {**dict.fromkeys(offered), **self._special_tokens, **variables, **given}
        try:
            return self._template.render(
                names,
                messages=[_message_dict(message) for message in messages],
                add_generation_prompt=job.add_generation_prompt and job.kind == "generate",
            )
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
            raise InvalidJob(f"the chat template refuses these messages: {error}") from None


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _up_to(text: str, last: str) -> str:
    """The rendered text as far as the last message's own goes, for the model to go on with it.

    A template may have trimmed the message; what it kept of the spaces behind it stays, as in transformers.
    """
    if not last.strip():
        raise InvalidJob("`continue_final_message` needs a last message with text to go on with")
    at = text.rfind(last.strip())
    if at < 0:
        raise InvalidJob(
            "`continue_final_message`: the chat template does not write the last message as it is given"
        )
    whole = last.lstrip()
    end = at + len(whole if text.startswith(whole, at) else last.strip())
    return text[:end]


def _message_dict(message: Message) -> dict[str, Any]:
    """As templates expect it: what is not given is not there, but for the content."""
    fields: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.name is not None:
        fields["name"] = message.name
    if message.reasoning is not None:
        fields["reasoning"] = fields["reasoning_content"] = message.reasoning
    if message.tool_calls:
        fields["tool_calls"] = [_call_dict(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        fields["tool_call_id"] = message.tool_call_id
    return fields


def _call_dict(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": _arguments(call.function.arguments)}
    return {"id": call.id, "type": call.type, "function": function}


def _arguments(text: str) -> Any:
    """The object that the text is, as templates write it as JSON themselves; the text where it is none."""
    if not text.strip():
        return {}
    try:
        found = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return text
    return found if isinstance(found, dict) else text


def _tool_dict(tool: Tool) -> dict[str, Any]:
    return {"type": tool.type, "function": msgspec.to_builtins(tool.function)}


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    tokens: dict[str, str] = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        value = config.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            tokens[name] = value
    return tokens


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Not jinja's own filter, which escapes for HTML; parameters are those that transformers gives templates.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
