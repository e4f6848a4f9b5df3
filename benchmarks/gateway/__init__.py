"""What the gateway costs beside the client alone."""
