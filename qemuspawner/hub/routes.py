"""Our routes in the hub: each of these modules adds its own to JupyterHub's list when it is imported."""

# ruff: noqa: F401 - for what they add
from qemuspawner.hub.admission import gate, quota_api
from qemuspawner.hub.catalogue import images_api, machines_api, machines_page
from qemuspawner.hub.desktops import api, pictures, share_api, staff_api
from qemuspawner.hub.form import choices_api, favourites_api, partitions_api, settings_api, terms_api
from qemuspawner.hub.notices import announcements_api
from qemuspawner.hub.proposals import api as proposals_api
from qemuspawner.hub.publishing import api as publishing_api
from qemuspawner.hub.publishing import take_home_api
from qemuspawner.hub.runs import run_api, statistics_pages
from qemuspawner.hub.sessions import progress_api
