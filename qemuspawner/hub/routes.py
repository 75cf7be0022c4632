"""Our routes in the hub: each of these modules adds its own to JupyterHub's list when it is imported."""

from qemuspawner.hub import (  # noqa: F401 - for what they add
    announcements_api,
    api,
    choices_api,
    favourites_api,
    images_api,
    machines_api,
    machines_page,
    pictures,
    quota_api,
    run_api,
    settings_api,
    share_api,
    staff_api,
    statistics_pages,
    terms_api,
)
from qemuspawner.hub.proposals import api as proposals_api  # noqa: F401
