// Everyone's pointer over the desktop, with a name.

const FADE_AFTER_MS = 4000;
const HUES = [210, 340, 130, 30, 270, 175, 55, 300];

/** Shows others' pointers over the desktop's canvas, and tells where ours is. */
export class Pointers {
  #stage;
  #desktop;
  #marks = new Map(); // name -> {mark, place, timer}

  /** `onMove` is called with pixels of the screen. */
  constructor({ stage, screen, desktop, onMove }) {
    this.#stage = stage;
    this.#desktop = desktop;
    screen.addEventListener("pointermove", ({ clientX, clientY }) => {
      const place = desktop.placeOf(clientX, clientY);
      if (place) {
        onMove(...place);
      }
    });
    new ResizeObserver(() => this.#placeAll()).observe(screen);
  }

  /** {name: [x, y]} */
  show(pointers) {
    for (const [name, place] of Object.entries(pointers)) {
      const entry = this.#marks.get(name) ?? this.#add(name);
      entry.place = place;
      this.#put(entry);
      clearTimeout(entry.timer);
      entry.timer = setTimeout(() => this.#remove(name), FADE_AFTER_MS);
    }
  }

  clear() {
    for (const name of [...this.#marks.keys()]) {
      this.#remove(name);
    }
  }

  #add(name) {
    const mark = document.createElement("div");
    mark.className = "pointer";
    mark.style.setProperty("--hue", hueOf(name));
    const label = document.createElement("span");
    label.textContent = name;
    mark.append(label);
    this.#stage.append(mark);
    const entry = { mark, place: [0, 0], timer: null };
    this.#marks.set(name, entry);
    return entry;
  }

  #remove(name) {
    const entry = this.#marks.get(name);
    clearTimeout(entry?.timer);
    entry?.mark.remove();
    this.#marks.delete(name);
  }

  #placeAll() {
    for (const entry of this.#marks.values()) {
      this.#put(entry);
    }
  }

  #put({ mark, place }) {
    const at = this.#desktop.whereIs(...place);
    mark.hidden = !at;
    if (at) {
      const box = this.#stage.getBoundingClientRect();
      mark.style.transform = `translate(${at[0] - box.left}px, ${at[1] - box.top}px)`;
    }
  }
}

/** The same colour for a name wherever it is shown. */
export function hueOf(name) {
  let sum = 0;
  for (const character of name) {
    sum = (sum * 31 + character.codePointAt(0)) % 65521;
  }
  return HUES[sum % HUES.length];
}
