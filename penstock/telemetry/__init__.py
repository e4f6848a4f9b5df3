"""What consumer and gateway say of themselves: logs, metrics by HTTP, traces. Nothing else here imports it.

The libraries of Prometheus and OpenTelemetry are extras: imported where they are wanted, and not before.
"""
