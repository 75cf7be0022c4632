// View settings that outlive the page. Other pages of this origin share the storage: nothing secret, all checked.

const KEY = "qemuspawner.view";

function load() {
  try {
    return JSON.parse(localStorage.getItem(KEY)) ?? {};
  } catch {
    return {};
  }
}

/** A setting, if it is one of `allowed` (where given). */
export function remembered(name, allowed = null) {
  const value = load()[name];
  return allowed === null || allowed.includes(value) ? value : undefined;
}

export function remember(name, value) {
  try {
    localStorage.setItem(KEY, JSON.stringify({ ...load(), [name]: value }));
  } catch {
    // Storage is full or forbidden: the setting lasts as long as the page.
  }
}
