"""The verbs about the gateway: itself, and its tenants' keys and webhooks. Light, as `producer.cli` is."""

from __future__ import annotations

from typing import Annotated, Final

from cyclopts import App, Parameter

from producer.flags import SERVE, ServerFlags
from producer.gateway.flags import GATEWAY, Folder, GatewayFlags, settings_of
from producer.gateway.place import Kept, Place
from producer.operate import COMMANDS, OPERATE

_GATEWAY: Final = """\
Examples:
  penstock gateway                                  of the embedded server, on 127.0.0.1:8000
  penstock gateway --redis redis://queue:6379 --host 0.0.0.0 --tls-certificate cert.pem --tls-key key.pem

Exit status: 0 drained; 1 it could not start; 130 ended at once by a second Ctrl-C.
"""
_KEYS: Final = """\
Examples:
  penstock keys create --tenant alice --requests-per-minute 600 --queued-tokens 2000000
  penstock keys create --tenant ops --operator --expires 90d
  penstock keys revoke key_0123456789abcdef
"""
_WEBHOOKS: Final = """\
Examples:
  penstock webhooks create --tenant alice --url https://example.org/hooks
  penstock webhooks create --tenant alice --url https://example.org/b --events batch.completed,batch.failed
  penstock webhooks deliveries --given-up
"""

gateway: Final = App(
    name="gateway",
    group=SERVE,
    sort_key=3,
    help="Serve OpenAI's API, penstock's own and a page, over a queue that runs; SIGTERM drains.",
    help_epilogue=_GATEWAY,
)
keys: Final = App(
    name="keys",
    group_commands=COMMANDS,
    group=OPERATE,
    sort_key=5,
    help="Create, list and revoke the keys by which tenants use the gateway.",
    help_epilogue=_KEYS,
)
webhooks: Final = App(
    name="webhooks",
    group_commands=COMMANDS,
    group=OPERATE,
    sort_key=6,
    help="Have tenants' servers told when their jobs and batches end.",
    help_epilogue=_WEBHOOKS,
)

_Server = Annotated[ServerFlags, Parameter(name="*")]
_Json = Annotated[bool, Parameter(negative=(), show_default=False)]
_Flag = Annotated[bool, Parameter(negative=(), show_default=False)]
_Kept = Annotated[Kept, Parameter(name="--keys", env_var="PENSTOCK_GATEWAY_KEYS", group=GATEWAY)]
_Gateway = Annotated[GatewayFlags, Parameter(name="*")]
_AS_SET = GatewayFlags()
_NO_SERVER_NAMED = ServerFlags()


@gateway.default
def serve_gateway(
    *, settings: _Gateway = _AS_SET, folder: Folder = None, server: _Server = _NO_SERVER_NAMED
) -> int:
    """Serve OpenAI's API, penstock's own and a page, over a queue that runs; SIGTERM drains.

    Parameters
    ----------
    folder
        For keys, and files where --storage names nothing else; by default `gateway` in the data folder.
    """
    from producer.gateway.command import run_gateway
    from producer.where import find_server

    return run_gateway(settings_of(vars(settings), server.where, find_server(server.where), folder))


@keys.command(name="create", sort_key=1, help_epilogue=_KEYS)
def create_key(
    *,
    tenant: str,
    lane: str | None = None,
    weight: float | None = None,
    operator: _Flag = False,
    requests_per_minute: int | None = None,
    queued_tokens: int | None = None,
    expires: str | None = None,
    note: str = "",
    folder: Folder = None,
    kept: _Kept = "file",
    server: _Server = _NO_SERVER_NAMED,
) -> int:
    """Create a key and print it, once: only its SHA-256 is kept.

    Parameters
    ----------
    tenant
        Whose it is: keys of one tenant see the same files, batches and jobs, and no other tenant's.
    lane
        Where its jobs go, declared if it is not there yet; by default the tenant's own, of its name.
    weight
        The lane's share of the tokens where several lanes wait.
    operator
        It may also see and change what belongs to the whole queue.
    requests_per_minute
        Further ones are told 429.
    queued_tokens
        Tokens, prompts and outputs to come, that its jobs may have under way at once.
    expires
        After so long: 90d, 12h and the like; by default never.
    note
        For whoever reads the list.
    folder
        The gateway's folder; by default `gateway` in the data folder.
    kept
        Where keys are kept: keys.json in the folder, or the server; as the gateway is set.
    """
    from producer.gateway.key_command import run_create
    from producer.gateway.keys import Grant, limits_of, seconds_of

    grant = Grant(
        tenant=tenant,
        lane=lane,
        limits=limits_of(requests_per_minute, queued_tokens),
        is_operator=operator,
        expires_in_s=None if expires is None else seconds_of(expires),
        note=note,
    )
    return run_create(Place(server.where, folder, kept), grant, weight)


@keys.command(name="list", sort_key=2, help_epilogue="")
def list_keys(
    *, json: _Json = False, folder: Folder = None, kept: _Kept = "file", server: _Server = _NO_SERVER_NAMED
) -> int:
    """List all keys, those that were revoked as well; the keys themselves are not known any more.

    Parameters
    ----------
    json
        Print a JSON object for each, a line each.
    folder
        The gateway's folder; by default `gateway` in the data folder.
    kept
        Where keys are kept.
    """
    from producer.gateway.key_command import run_list

    return run_list(Place(server.where, folder, kept), as_json=json)


@keys.command(name="revoke", sort_key=3, help_epilogue="")
def revoke_keys(
    *ids: str, folder: Folder = None, kept: _Kept = "file", server: _Server = _NO_SERVER_NAMED
) -> int:
    """Let nobody in by these keys any more, within a second or two.

    Parameters
    ----------
    ids
        Of keys, as `penstock keys list` prints them.
    folder
        The gateway's folder; by default `gateway` in the data folder.
    kept
        Where keys are kept.
    """
    from producer.gateway.key_command import run_revoke

    return run_revoke(Place(server.where, folder, kept), ids)


@webhooks.command(name="create", sort_key=1, help_epilogue=_WEBHOOKS)
def create_webhook(
    *,
    tenant: str,
    url: str,
    events: str | None = None,
    folder: Folder = None,
    kept: _Kept = "file",
    server: _Server = _NO_SERVER_NAMED,
) -> int:
    """Tell a URL when a tenant's jobs or batches end, and print the secret that signs what it is told.

    Parameters
    ----------
    tenant
        Whose jobs and batches.
    url
        Where POST requests go.
    events
        job.completed, job.failed, batch.completed, batch.failed, batch.expired, batch.cancelled; by
        default all
    folder
        The gateway's folder; by default `gateway` in the data folder.
    kept
        Where keys and webhooks are kept.
    """
    from producer.gateway.webhooks.command import run_create

    return run_create(Place(server.where, folder, kept), tenant, url, events)


@webhooks.command(name="list", sort_key=2, help_epilogue="")
def list_webhooks(
    *, json: _Json = False, folder: Folder = None, kept: _Kept = "file", server: _Server = _NO_SERVER_NAMED
) -> int:
    """List all tenants' webhooks.

    Parameters
    ----------
    json
        Print a JSON object for each, a line each.
    folder
        The gateway's folder; by default `gateway` in the data folder.
    kept
        Where keys and webhooks are kept.
    """
    from producer.gateway.webhooks.command import run_list

    return run_list(Place(server.where, folder, kept), as_json=json)


@webhooks.command(name="delete", sort_key=3, help_epilogue="")
def delete_webhook(
    webhook: str, /, *, folder: Folder = None, kept: _Kept = "file", server: _Server = _NO_SERVER_NAMED
) -> int:
    """Tell a URL nothing any more.

    Parameters
    ----------
    webhook
        Its id, as `penstock webhooks list` prints it.
    folder
        The gateway's folder; by default `gateway` in the data folder.
    kept
        Where keys and webhooks are kept.
    """
    from producer.gateway.webhooks.command import run_delete

    return run_delete(Place(server.where, folder, kept), webhook)


@webhooks.command(sort_key=4, help_epilogue="")
def deliveries(
    *,
    given_up: _Flag = False,
    json: _Json = False,
    folder: Folder = None,
    kept: _Kept = "file",
    server: _Server = _NO_SERVER_NAMED,
) -> int:
    """List what is under way to webhooks, with the error of the last attempt.

    Parameters
    ----------
    given_up
        What was tried for a day and given up, in the last week, instead.
    json
        Print a JSON object for each, a line each.
    folder
        The gateway's folder; by default `gateway` in the data folder.
    kept
        Where keys and webhooks are kept.
    """
    from producer.gateway.webhooks.command import run_deliveries

    return run_deliveries(Place(server.where, folder, kept), given_up=given_up, as_json=json)
