"""What JupyterHub's log leaves out of addresses, beyond what it knows of."""

from jupyterhub import log

# Whoever is sent to log in comes back to the address of `next`, and what is secret in it is not seen there.
log.SCRUB_PARAM_KEYS += ("next",)
