"""docs/metrics.md, the dashboard and Prometheus's configuration name what is exposed, and all of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import Metric
from prometheus_client.registry import CollectorRegistry

from consumer.engine_counts import EngineCounts, Moment
from consumer.metrics import ConsumerMetrics
from penstock.keys import Keys
from penstock.lanes import LaneSettings
from penstock.link import Link
from penstock.messages import Heartbeat
from producer.gateway.depths import Depths, LaneDepth, QueueDepths
from producer.gateway.http_metrics import HttpMetrics
from producer.gateway.queue_metrics import QueueMetrics
from producer.gateway.served import Served
from tests.consumer.scraping import lint, query_name

ROOT = Path(__file__).parents[2]
ROW = re.compile(
    r"^\| `(?P<name>[a-z_:0-9]+)` \| (?P<kind>counter|gauge|histogram) \|(?P<labels>[^|]*)\|", re.M
)
NAME = re.compile(r"\b(?:vllm:|penstock_)[a-z_0-9]+")


def of_consumer() -> list[Metric]:
    moment = Moment(counts=EngineCounts(), num_leases=0, ready=True, num_blocks=1, max_num_seqs=1)
    return list(ConsumerMetrics("m", lambda: moment).collect())


def of_gateway() -> list[Metric]:
    registry = CollectorRegistry()
    HttpMetrics(registry)
    link = Link("redis://nowhere")
    queue = QueueMetrics(QueueDepths(link, Keys(), Served(link, Keys())))
    beat = Heartbeat(model="m", phase="ready", at_ms=0, interval_ms=1)
    queue._depths = Depths(  # pyright: ignore[reportPrivateUsage]
        now_ms=0, lanes=[LaneDepth(name="a")], dead=0, consumers={"c": beat}, queue=LaneSettings()
    )
    return [*registry.collect(), *queue.collect()]


def documented() -> dict[str, str]:
    text = (ROOT / "docs" / "metrics.md").read_text()
    return {match["name"]: match["kind"] for match in ROW.finditer(text)}


def sample_names(families: Iterable[Metric]) -> set[str]:
    """Everything that a query may name."""
    endings = {"histogram": ["_bucket", "_sum", "_count"], "counter": ["_total"], "gauge": [""]}
    return {family.name + ending for family in families for ending in endings[family.type]}


def expressions(dashboard: dict[str, Any]) -> Iterator[str]:
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel.get("targets", []))
    yield from (one["definition"] for one in dashboard["templating"]["list"] if "definition" in one)


def test_every_metric_is_documented_with_its_type_and_no_other_is() -> None:
    exposed = {query_name(family): family.type for family in (*of_consumer(), *of_gateway())}
    assert documented() == exposed


def test_names_units_and_help_are_as_they_should_be() -> None:
    assert lint((*of_consumer(), *of_gateway())) == []


def test_the_dashboard_queries_what_is_there() -> None:
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "penstock.json").read_text())
    known = sample_names((*of_consumer(), *of_gateway()))
    queries = list(expressions(dashboard))
    assert len(queries) > 30
    for query in queries:
        named = set(NAME.findall(query))
        assert named, query
        assert named <= known, query
        assert query.count("(") == query.count(")"), query
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    places = [tuple(panel["gridPos"][side] for side in "xywh") for panel in dashboard["panels"]]
    cells = [(x + i, y + j) for x, y, w, h in places for i in range(w) for j in range(h)]
    assert len(cells) == len(set(cells)), "panels overlap"
    assert max(x for x, _ in cells) < 24


def test_prometheus_scrapes_both() -> None:
    config = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    assert jobs.keys() == {"penstock-gateway", "penstock-consumer"}
    assert {job["metrics_path"] for job in jobs.values()} == {"/metrics"}
