// Elements of the page, made by functions. Text goes in as text, never as markup.

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

function byId(id) {
  return document.getElementById(id);
}

// A link to a place: it can be followed, copied and opened in another tab.
function linkTo(place, text, attributes = {}) {
  return make("a", { href: "#" + addressOf(place), ...attributes }, text);
}

// A key on the keyboard, as it is printed on buttons.
function key(name) {
  return make("kbd", { "aria-hidden": "true" }, name);
}
