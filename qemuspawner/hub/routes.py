"""Our routes in the hub: each of these modules adds its own to JupyterHub's list when it is imported."""

from qemuspawner.hub import (
    announcements_api,
    api,
    favourites_api,
    images_api,
    machines_api,
    machines_page,
    quota_api,
    run_api,
    share_api,
    staff_api,
    statistics_pages,
)
from qemuspawner.hub.proposals import api as proposals_api

MODULES = (
    announcements_api,
    api,
    favourites_api,
    images_api,
    machines_api,
    machines_page,
    proposals_api,
    quota_api,
    run_api,
    share_api,
    staff_api,
    statistics_pages,
)
