// The tape: every operation of the step, forward beside backward.

function drawTape() {
  const rows = data.rows.map((row) => make("li", { class: nested(row.forward) ? "nested" : null },
    callLink(row.forward, shortName(row.forward)),
    make("span", { class: "backward" }, row.backward.map((call) => callLink(call, gradientNames(call))))));
  const list = make("ol", {}, rows);
  const turn = make("p", { class: "turn" }, "the loss, ", make("b", { "data-role": "loss" }), ": here forward turns into backward");
  const heads = make("p", { class: "directions", id: "directions" },
    make("span", {}, "forward ", make("span", { "aria-hidden": "true" }, "↓"), make("span", { class: "unseen" }, "reads downwards")),
    make("span", {}, "backward ", make("span", { "aria-hidden": "true" }, "↑"), make("span", { class: "unseen" }, "reads upwards")));
  const box = make("details", {}, make("summary", {}, "Tape: all operations"), make("h2", {}, "Tape"), heads, list, turn);
  byId("tape").replaceChildren(box);
  const wide = matchMedia("(min-width: 1000px)");
  const open = () => (box.open = wide.matches);
  wide.addEventListener("change", open);
  open();
}

// On a narrow screen the tape is a drawer, which closes when a reader goes somewhere.
function closeDrawer() {
  if (!matchMedia("(min-width: 1000px)").matches) document.querySelector("#tape details").open = false;
}

function callLink(number, text) {
  const call = data.calls[number];
  const stop = stops.find((one) => one.call === number);
  const adds = call.function === "add";
  const label = adds ? "+ its gradients add" : text;
  const attributes = { "data-call": call.name, "class": adds ? "adds" : null, "aria-label": `${call.name}: ${label}` };
  return make("a", { href: "#" + stop.address, ...attributes }, label);
}

function nested(call) {
  const parent = data.calls[call].parent;
  return parent !== null && stops.some((stop) => stop.call === parent);
}

function shortName(call) {
  return data.calls[call].name.replace("_forward", "").replace(".", " ").replaceAll("_", " ");
}

// The gradients that a backward call returns: those of its forward's arguments, or else the last thing it makes.
function gradientNames(number) {
  const call = data.calls[number];
  const names = stops.filter((stop) => stop.call === number).map((stop) => stop.formula.name);
  const known = Object.keys(data.calls[call.pair]?.arguments ?? {}).map((name) => "d" + name);
  const returned = names.filter((name) => known.includes(name));
  return [...new Set(returned.length ? returned : names.slice(-1))].join(" ");
}

function markTape(place) {
  for (const link of document.querySelectorAll("#tape a[data-call]")) {
    const here = link.dataset.call === callOf(place.stop).name;
    if (here) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
    const call = data.calls.findIndex((one) => one.name === link.dataset.call);
    const paired = callOf(place.stop).pair === call || data.calls[call].pair === place.stop.call;
    link.classList.toggle("pair", paired && !here);
    const stop = stops.find((one) => one.call === call);
    link.href = "#" + addressOf({ ...place, stop, flat: cellNear(stop, remembered) });
  }
  document.querySelector("#tape [data-role=loss]").textContent = format(data.states[place.state].loss);
}
