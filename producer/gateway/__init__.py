"""The HTTP gateway: OpenAI's API over the queue, penstock's own routes, and a page that shows it all."""
