import re
from pathlib import Path
from qemuspawner import scopes
async def test_x(start_hub):
    hub = await start_hub(jupyterhub={"custom_scopes": scopes.CUSTOM_SCOPES, "extra_user_scopes": set(scopes.USER_SCOPES)})
    alice = await hub.log_in("alice")
    page = await alice.request("GET", hub.url / "home", headers={"Accept-Language": "fr"})
    Path("/tmp/w/home6-page.html").write_text(page.text)
    for n, s in enumerate(re.findall(r"<script(?:>| type=\"text/javascript\">)(.*?)</script>", page.text, re.S)):
        Path(f"/tmp/w/home6-script{n}.js").write_text(s)
