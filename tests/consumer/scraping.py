"""Metrics as Prometheus would read them."""

from __future__ import annotations

import socket
from collections.abc import Iterable

import httpx
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families


def free_port() -> int:
    """A port that nobody has just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Scrape:
    """One reading: values by name and labels."""

    def __init__(self, text: str) -> None:
        self.families: list[Metric] = list(text_string_to_metric_families(text))
        self._values = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        """The sum over all series of this name that have these labels; None of them is an error."""
        found = [
            value
            for (known, having), value in self._values.items()
            if known == name and labels.items() <= dict(having).items()
        ]
        assert found, f"{name} {labels} is not there"
        return sum(found)

    @property
    def names(self) -> set[str]:
        """Of families, as a query names them."""
        return {query_name(family) for family in self.families}

    @property
    def num_series(self) -> int:
        """How many time series there are."""
        return len(self._values)


def query_name(family: Metric) -> str:
    """A counter's samples end in _total, which its family's name leaves out."""
    return f"{family.name}_total" if family.type == "counter" else family.name


async def scrape(url: str, **headers: str) -> Scrape:
    """Read metrics at this URL."""
    async with httpx.AsyncClient(timeout=10) as client:
        reply = await client.get(url, headers=headers)
    assert reply.status_code == 200, reply.text
    return Scrape(reply.text)


def lint(families: Iterable[Metric]) -> list[str]:
    """What `promtool check metrics` would say, but for vLLM's prefix."""
    found: list[str] = []
    for family in families:
        name = family.name.removeprefix("vllm:")
        if not family.documentation.strip() or not family.documentation.strip().endswith("."):
            found.append(f"{name}: HELP is no sentence")
        if ":" in name or name != name.lower() or "__" in name:
            found.append(f"{name}: characters")
        if (
            family.type != "counter"
            and family.name == name
            and name.endswith(("_total", "_count", "_sum", "_bucket"))
        ):
            found.append(f"{name}: a counter's or a histogram's ending")
        if any(name.endswith(f"_{unit}") for unit in ("milliseconds", "ms", "minutes", "kilobytes", "mb")):
            found.append(f"{name}: not a base unit")
        if family.type in ("unknown", "untyped"):
            found.append(f"{name}: no TYPE")
        if family.type == "histogram":
            found += _of_histogram(family)
    return found


def _of_histogram(family: Metric) -> list[str]:
    by_labels: dict[frozenset[tuple[str, str]], list[float]] = {}
    for sample in family.samples:
        if sample.name.endswith("_bucket"):
            labels = frozenset(item for item in sample.labels.items() if item[0] != "le")
            by_labels.setdefault(labels, []).append(sample.value)
    return [f"{family.name}: buckets fall" for counts in by_labels.values() if counts != sorted(counts)]
