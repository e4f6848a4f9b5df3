"""/v1/files: what tenants uploaded, and what their batches wrote."""
