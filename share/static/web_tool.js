// The page that stands in for a web tool that does not answer yet: opens the tool as soon as it does. Until then the page
// stays as it is for those who read it; one that loads anew every few seconds can be read by nobody.

const ASKED_EVERY_MS = 3000;
// What the session says for a tool that nothing listens for; see routes/proxied.py.
const BAD_GATEWAY = 502;

async function look() {
  const answer = await fetch(location.href, { method: "HEAD" }).catch(() => null);
  if (answer && answer.status !== BAD_GATEWAY) {
    location.reload();
    return;
  }
  setTimeout(look, ASKED_EVERY_MS);
}

setTimeout(look, ASKED_EVERY_MS);
