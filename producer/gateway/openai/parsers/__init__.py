"""Parsers of models' text: tool calls and reasoning, taken as they come. They know nothing of requests."""
