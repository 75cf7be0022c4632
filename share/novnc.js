// What the desktop page takes from npm; hatch_build.py bundles it into static/vendor/novnc.js.

export { default as RFB } from "@novnc/novnc";
// Not among the package's exports, but needed to send the clipboard's text as it is (static/desktop.js).
export { default as Deflator } from "./node_modules/@novnc/novnc/core/deflator.js";
