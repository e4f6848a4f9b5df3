"""Webhooks: a tenant's own server is told when its jobs and batches end, signed and retried."""
