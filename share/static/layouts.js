// What is on the keys of the keyboards that a guest can be told, as XKB has it; session/keyboards.py has the names.

// Marks of dead keys, in the form that combines with a letter.
const CIRCUMFLEX = "\u0302";
const ACUTE = "\u0301";
const GRAVE = "\u0300";
const DIAERESIS = "\u0308";
const TILDE = "\u0303";
// As the tables below name them.
const DEAD = { "d^": CIRCUMFLEX, "d´": ACUTE, "d`": GRAVE, "d¨": DIAERESIS, "d~": TILDE };

// The key between the left Shift and Z is IntlBackslash, the one beside Enter Backslash.
const CODES = [
  "Backquote",
  ...[..."1234567890"].map((digit) => `Digit${digit}`),
  "Minus",
  "Equal",
  ...[..."QWERTYUIOP"].map((letter) => `Key${letter}`),
  "BracketLeft",
  "BracketRight",
  ...[..."ASDFGHJKL"].map((letter) => `Key${letter}`),
  "Semicolon",
  "Quote",
  "Backslash",
  "IntlBackslash",
  ...[..."ZXCVBNM"].map((letter) => `Key${letter}`),
  "Comma",
  "Period",
  "Slash",
];

// Alone, with Shift, with AltGr; "·": nothing that is typed here. Of AltGr as far as it is of use.
const TABLES = {
  us: [
    "` 1 2 3 4 5 6 7 8 9 0 - = q w e r t y u i o p [ ] a s d f g h j k l ; ' \\ < z x c v b n m , . /",
    "~ ! @ # $ % ^ & * ( ) _ + Q W E R T Y U I O P { } A S D F G H J K L : \" | > Z X C V B N M < > ?",
    "",
  ],
  gb: [
    "` 1 2 3 4 5 6 7 8 9 0 - = q w e r t y u i o p [ ] a s d f g h j k l ; ' # \\ z x c v b n m , . /",
    "¬ ! \" £ $ % ^ & * ( ) _ + Q W E R T Y U I O P { } A S D F G H J K L : @ ~ | Z X C V B N M < > ?",
    "| ¹ ² ³ €",
  ],
  de: [
    "d^ 1 2 3 4 5 6 7 8 9 0 ß d´ q w e r t z u i o p ü + a s d f g h j k l ö ä # < y x c v b n m , . -",
    "° ! \" § $ % & / ( ) = ? d` Q W E R T Z U I O P Ü * A S D F G H J K L Ö Ä ' > Y X C V B N M ; : _",
    "′ ¹ ² ³ ¼ ½ ¬ { [ ] } \\ · @ ſ € ¶ ŧ ← ↓ → ø þ d¨ ~ æ ſ ð đ ŋ ħ · ĸ ł · d^ ’ | » « ¢ „ “ ” µ",
  ],
  fr: [
    "² & é \" ' ( - è _ ç à ) = a z e r t y u i o p d^ $ q s d f g h j k l m ù * < w x c v b n , ; : !",
    "~ 1 2 3 4 5 6 7 8 9 0 ° + A Z E R T Y U I O P d¨ £ Q S D F G H J K L M % µ > W X C V B N ? . / §",
    "¬ ¹ ~ # { [ | ` \\ ^ @ ] } æ « € ¶ ŧ ← ↓ → ø þ d¨ ¤",
  ],
  es: [
    "º 1 2 3 4 5 6 7 8 9 0 ' ¡ q w e r t y u i o p d` + a s d f g h j k l ñ d´ ç < z x c v b n m , . -",
    "ª ! \" · $ % & / ( ) = ? ¿ Q W E R T Y U I O P d^ * A S D F G H J K L Ñ d¨ Ç > Z X C V B N M ; : _",
    "\\ | @ # ~ ½ ¬ { [ ] } \\ · @ ſ € ¶ ŧ ← ↓ → ø þ [ ] æ ß ð đ ŋ ħ · ĸ ł d~ { }",
  ],
  ch: [
    "§ 1 2 3 4 5 6 7 8 9 0 ' d^ q w e r t z u i o p ü d¨ a s d f g h j k l ö ä $ < y x c v b n m , . -",
    "° + \" * ç % & / ( ) = ? d` Q W E R T Z U I O P è ! A S D F G H J K L é à £ > Y X C V B N M ; : _",
    "¬ | @ # ¼ ½ ¬ | ¢ ] } d´ d~ @ ſ € ¶ ŧ ← ↓ → œ þ [ ] æ ß ð đ ŋ ħ · ĸ ł d´ { } \\",
  ],
  "ch-fr": [
    "§ 1 2 3 4 5 6 7 8 9 0 ' d^ q w e r t z u i o p è d¨ a s d f g h j k l é à $ < y x c v b n m , . -",
    "° + \" * ç % & / ( ) = ? d` Q W E R T Z U I O P ü ! A S D F G H J K L ö ä £ > Y X C V B N M ; : _",
    "¬ | @ # ¼ ½ ¬ | ¢ ] } d´ d~ @ ſ € ¶ ŧ ← ↓ → œ þ [ ] æ ß ð đ ŋ ħ · ĸ ł d´ { } \\",
  ],
};

/** The layouts, in the order of menus. */
export const LAYOUTS = Object.keys(TABLES);

const LEVELS = [{}, { shift: true }, { altgr: true }];

function* keysOf(layout) {
  for (const [level, row] of TABLES[layout].entries()) {
    for (const [at, character] of row.split(" ").entries()) {
      if (character && character !== "·") {
        yield { code: CODES[at], character: DEAD[character] ?? character, level };
      }
    }
  }
}

const SPACE = { code: "Space", character: " " };
// What dead keys make of a space. Of others it is something else: an acute accent becomes an apostrophe.
const ALONE = { "^": CIRCUMFLEX, "`": GRAVE, "~": TILDE };

const made = new Map();

/** Which key makes which character, dead ones by their mark: character -> {code, character, shift, altgr}. */
function strokesOf(layout) {
  if (!made.has(layout)) {
    const strokes = new Map([[" ", SPACE]]);
    for (const { code, character, level } of keysOf(layout)) {
      if (!strokes.has(character)) {
        strokes.set(character, { code, character, ...LEVELS[level] });
      }
    }
    made.set(layout, strokes);
  }
  return made.get(layout);
}

/** The strokes for one character on a layout, one or two after each other; null where it is not on it. */
export function findStrokes(layout, character) {
  const strokes = strokesOf(layout);
  if (strokes.has(character)) {
    return [strokes.get(character)];
  }
  const [base, mark] = character in ALONE ? [" ", ALONE[character]] : character.normalize("NFD");
  const pair = [strokes.get(mark), strokes.get(base)];
  return pair.every(Boolean) ? pair : null;
}

/** The layout that a browser's map of its keyboard (code -> character) fits, or null where none fits alone. */
export function matchLayout(map) {
  const scores = Object.keys(TABLES).map((layout) => {
    const plain = [...keysOf(layout)].filter(({ level, character }) => level === 0 && character.length === 1);
    // Browsers tell of a dead key what they like.
    const known = plain.filter(({ code, character }) => map.has(code) && !/\p{M}/u.test(character));
    const wrong = known.filter(({ code, character }) => map.get(code) !== character).length;
    return { layout, wrong: known.length < 26 ? Infinity : wrong };
  });
  scores.sort((one, other) => one.wrong - other.wrong);
  const [best, second] = scores;
  return best.wrong <= 1 && best.wrong < second.wrong ? best.layout : null;
}

const LANGUAGES = [
  ["de-CH", "ch"],
  ["fr-CH", "ch-fr"],
  ["en-GB", "gb"],
  ["es-ES", "es"],
  ["fr-FR", "fr"],
  ["de", "de"],
  ["es", "es"],
  ["fr", "fr"],
  ["en", "us"],
];
// The same language with keyboards that are none of ours.
const OTHER_KEYBOARDS = /^(fr-CA|fr-BE|de-BE|es-.*)$/;

/** What people with this language of the browser often have; "" where that is not known. */
export function guessByLanguage(language) {
  const isLike = (tag) => language.startsWith(`${tag}-`) && !OTHER_KEYBOARDS.test(language);
  const found = LANGUAGES.find(([tag]) => language === tag || isLike(tag));
  return found?.[1] ?? "";
}
