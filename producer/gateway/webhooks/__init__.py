"""Webhooks: a tenant's own server is told when its jobs and batches end. Standard Webhooks, signed, retried."""
