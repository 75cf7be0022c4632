"""The custom scopes that JupyterHub is told of, and keeps in shares and tokens; sessions enforce them.

A hub's configuration sets `c.JupyterHub.custom_scopes` and `c.JupyterHub.extra_user_scopes` to what is here:
JupyterHub refuses a token or a share with a scope that it does not know, or that its maker does not have.
"""

VIEW = "custom:qemuspawner:view"
CONTROL = "custom:qemuspawner:control"
AGENT = "custom:qemuspawner:agent"

# The descriptions are read by who is asked to consent, before "only you" or "server alice/desk".
CUSTOM_SCOPES = {
    VIEW: {"description": "Look on at a desktop, without mouse and keyboard"},
    CONTROL: {"description": "Use a desktop with mouse and keyboard"},
    AGENT: {"description": "Let a program type and click at a desktop"},
}

# What every user has: of the own desktops, to use them and to hand that on.
USER_SCOPES = frozenset(
    {
        "shares!user",
        "read:users:name",
        "read:groups:name",
        *(f"{scope}!user" for scope in CUSTOM_SCOPES),
    }
)
