"""The live page: what the queue does, for a person who operates it.

Rendered here and sent as HTML; htmx puts what has changed into the page, over one stream of server-sent
events. Nothing is built, nothing is fetched from elsewhere, and no script is written into the pages.
"""
