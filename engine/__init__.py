"""The engine: continuous batching over a paged KV cache. Knows token ids, never text or queues."""
