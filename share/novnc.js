// What the desktop page takes from npm; hatch_build.py bundles it into static/vendor/novnc.js.

export { default as RFB } from "@novnc/novnc";
