// How the desktop is shown: its size in the window, and what of the picture is given up for speed.

import { Connection } from "./connection.js";
import { t } from "./i18n.js";
import { remember, remembered } from "./settings.js";

const byId = (id) => document.getElementById(id);

const QUALITIES = [0, 1, 2, 3, 4, 5, 6, 7, 8];
const COMPRESSIONS = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9];

/** ping()  resolves to milliseconds, or null */
export function setUpView(desktop, { ping }) {
  const menu = byId("view-menu");
  // On a phone the guest would get a desktop of 412 x 727.
  const scale = remembered("scale", ["match", "fit", "actual"]) ?? (matchMedia("(pointer: coarse)").matches ? "fit" : "match");
  desktop.scale = scale;
  document.querySelector(`[name=scale][value=${scale}]`).checked = true;
  menu.addEventListener("change", ({ target }) => {
    if (target.name === "scale") {
      desktop.scale = target.value;
      remember("scale", target.value);
      showSize();
    }
  });
  setUpLevel("quality", QUALITIES, 6, (level) => {
    desktop.quality = level;
  });
  setUpLevel("compression", COMPRESSIONS, 2, (level) => {
    desktop.compression = level;
  });
  setUpLanguage();
  const connection = new Connection({ desktop, ping });
  let timer = null;

  const show = () => {
    showSize();
    connection.show();
  };
  menu.addEventListener("open", () => {
    connection.begin();
    show();
    clearInterval(timer);
    timer = setInterval(show, 1000);
  });
  menu.addEventListener("close", () => clearInterval(timer));

  /** Say so where the desktop is scaled although it was to have the window's size. */
  function showSize() {
    const isWanted = byId("view-menu").querySelector("[name=scale]:checked").value === "match";
    let why = "";
    if (isWanted && desktop.isConnected && !desktop.isViewOnly && !desktop.isMatched) {
      why = desktop.sizes
        ? t("The desktop does not follow this window, so it is scaled.")
        : t("The desktop’s size is set elsewhere, so it is scaled here.");
    }
    byId("scale-why").textContent = why;
  }
}

/** The choice is a cookie, as the session and the hub write the page and their answers; see languages.py. */
function setUpLanguage() {
  byId("language").addEventListener("change", ({ target: { value, dataset } }) => {
    document.cookie = `qemuspawner-language=${value}; path=${dataset.path}; max-age=31536000; samesite=lax`;
    location.reload();
  });
}

function setUpLevel(name, allowed, usual, apply) {
  const level = remembered(name, allowed) ?? usual;
  apply(level);
  byId(name).value = level;
  byId(name).addEventListener("change", ({ target }) => {
    apply(Number(target.value));
    remember(name, Number(target.value));
  });
}
