"""/v1/batches: files of requests, driven through the queue."""
