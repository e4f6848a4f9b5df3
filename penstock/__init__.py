"""penstock: batch inference from Redis streams. This package is the contract and the client."""
