// The line: the source of the function with the current line marked.

function drawLine(place) {
  const { stop } = place;
  const source = functionOf(stop);
  const title = make("h2", { id: "line-title" }, make("code", {}, callOf(stop).name));
  const where = make("p", { class: "where" }, source.file, ", line ", String(stop.line), calledFrom(place));
  const lines = source.source.map(([number, text]) => codeLine(place, number, text));
  const list = make("ol", { "class": "code", "aria-label": "Source lines" }, lines);
  const box = make("div", { "class": "scroll", "id": "code", "tabindex": "0", "role": "region", "aria-label": "Code" }, list);
  return [title, where, box, insideLinks(place)];
}

function codeLine(place, number, text) {
  const here = stops.filter((stop) => stop.call === place.stop.call && number >= stop.line && number <= stop.last);
  const first = here.find((stop) => stop.line === number);
  const current = here.some((stop) => stop.line === place.stop.line);
  const [code, comment] = splitComment(text);
  const steps = first?.steps.map((step) => make("span", { class: "step" }, `step ${step}`)) ?? [];
  const marks = steps.length ? make("span", {}, steps) : null;
  const words = make("code", {}, code, comment && make("span", { class: "comment" }, comment));
  const content = first ? linkTo({ ...place, stop: first, flat: cellNear(first, remembered) }, words, { "data-line": number }) : words;
  return make("li", { "class": current ? "current" : first ? "stop" : null, "aria-current": current ? "step" : null },
    make("span", { class: "number" }, String(number)), content, marks);
}

function splitComment(text) {
  const at = text.indexOf("  # ");
  return at < 0 ? [text, ""] : [text.slice(0, at), text.slice(at)];
}

// Where a call was made, when the caller can be stopped at.
function calledFrom(place) {
  const call = callOf(place.stop);
  const caller = stops.find((stop) => stop.call === call.parent && stop.line <= call.parent_line && stop.last >= call.parent_line);
  return caller ? [", called by ", linkTo({ ...place, stop: caller, flat: cellNear(caller, remembered) }, caller.address)] : [];
}

// The calls that the current line makes and that have lines of their own.
function insideLinks(place) {
  const { call, line, last } = place.stop;
  const calls = data.calls.flatMap((inner, number) =>
    inner.parent === call && inner.parent_line >= line && inner.parent_line <= last ? [number] : []);
  const inner = calls.map((number) => stops.filter((stop) => stop.call === number).at(-1)).filter(Boolean);
  if (!inner.length) return null;
  const links = inner.map((stop) => linkTo({ ...place, stop, flat: cellNear(stop, remembered) }, callOf(stop).name));
  return make("p", { class: "note" }, "This line calls ", links, ": look inside.");
}
