// The page's own words in its language. qemuspawner/languages.py chooses it and brings the translations along.

const language = document.documentElement.lang;
const { messages, plurals } = JSON.parse(document.getElementById("messages")?.textContent ?? '{"messages": {}}');
const rules = new Intl.PluralRules(language);
// Such as "en-GB" for a page in English: days come before months there.
const locale = navigator.languages.find((tag) => tag.split("-")[0] === language.split("-")[0]) ?? language;

/** A text with values in place of `{name}`, such as t("Deleted {name}.", { name }). `make messages` finds the literal. */
export function t(text, values) {
  return fill(messages[text] ?? text, values);
}

/** One of two texts, or of as many as the language has, by `count`, which is `{count}` in them. */
export function plural(count, one, many, values) {
  const category = rules.select(count);
  const form = messages[one]?.[plurals[category]] ?? (category === "one" ? one : many);
  return fill(form, { count: decimal(count), ...values });
}

/** A number as the language writes it, with so many digits behind the point. */
export function decimal(number, digits = 0) {
  return number.toLocaleString(locale, { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

/** A moment, by milliseconds since 1970, as the language writes it. */
export function moment(at_ms) {
  return new Date(at_ms).toLocaleString(locale);
}

function fill(text, values = {}) {
  return text.replaceAll(/\{(\w+)\}/g, (all, name) => values[name] ?? all);
}
