// What a newcomer reads first: what the page is, the convention, how to walk, and some questions.

// A question, and the place that answers it: a stop and a cell. A page without that stop leaves the question out.
function questions() {
  const adds = stops.findLast((stop) => callOf(stop).function === "add" && data.arrays[stop.array].axes[0] === "position");
  const twice = [...data.text.slice(0, -1)].find((letter, i, all) => all.indexOf(letter) < i);
  return [
    ["Why do the rows of dscores sum to 0?", "attention_backward/dscores", { h: 1, t: 3, s: 3 }],
    ["Where does 1 / sqrt(D) enter backward?", "attention_backward/dq", { h: 1, t: 3, d: 0 }],
    ["Why is the gradient of a masked entry exactly 0?", data.text.length > 2 && "attention_backward/dscores", { h: 1, t: 0, s: 1 }],
    ["Where do gradients add into one x, and how many?", adds?.address, { t: 4, c: 0 }],
    ["Why is dscores = probs × (dy · (v − y))?", "attention_backward/dscores", { h: 1, t: 5, s: 4 }],
    ["What does a token that is used twice get?", twice && "embedding_backward/dtable", { v: data.vocabulary.indexOf(twice), c: 0 }],
  ].flatMap(([text, address, cell]) => {
    const stop = stops.find((one) => one.address === address || kindOf(one) === address);
    return stop ? [[text, { state: data.states.length - 1, stop, flat: cellNear(stop, cell) }]] : [];
  });
}

function drawAbout() {
  const inputs = [...data.text.slice(0, -1)].map(showCharacter).join("");
  const first = { state: data.states.length - 1, stop: stops[0], flat: 0 };
  byId("about").replaceChildren(make("details", {},
    make("summary", {}, "What this page is, and six questions to begin with".replace("six", count(questions().length))),
    make("div", { class: "columns" },
      make("div", {},
        make("p", {}, "This is one training step of a small GPT on the text ", make("b", {}, inputs), ": every line of code that makes ",
          "a number, every number, what it was made from, and beside the gradients the finite differences that check them."),
        make("p", {}, make("b", {}, "dx"), " means d loss / d x and has the shape of x; the loss is one number."),
        make("p", {}, "Press ", make("kbd", {}, "j"), " or “next” to walk from line to line, choose any cell, and follow what it was ",
          "made from. ", make("button", { click: () => jump(first) }, "begin at the first line")),
        make("p", {}, shapesInWords())),
      make("div", {},
        make("h2", {}, "Questions to look at"),
        make("ul", { class: "questions" }, questions().map(([text, place]) => make("li", {}, linkTo(place, text))))))));
}

function count(n) {
  return ["no", "one", "two", "three", "four", "five", "six"][n];
}

// What the letters of the formulas count.
function shapesInWords() {
  const { n_head: H, n_embd: C, model } = data.model;
  const heads = stops.some((stop) => callOf(stop).function === "attention_forward");
  return `${data.text.length - 1} positions t and s${heads ? `, ${H} ${H === 1 ? "head" : "heads"} h of ${C / H} channels d` : ""}, ${model === "bigram" ? "" : `${C} channels c, `}`
    + `${data.vocabulary.length} tokens v. There is one text, so its axis B is left out. Orange is above 0, blue below.`;
}

// The text is open where a newcomer lands, and folds when the reader goes somewhere.
function openAbout(open) {
  byId("about").firstElementChild.open = open;
}

const HELP = [
  ["j, k", "next and previous line; also the arrows on the code"],
  ["x", "the other side: a value and its gradient, forward and backward"],
  ["Tab, arrows, Home, End", "into a table, and from cell to cell"],
  ["Enter", "on a cell of “Read from”: go to the line that made it"],
  ["Backspace", "back to where you jumped from"],
  ["1 to 9", "head 0, head 1, and so on"],
  ["[ and ]", "before training and after"],
  ["s", "the numbers in the formula: show or hide"],
  ["f", "finite differences: show or hide"],
  ["p", "predict first: a number is blank until you have said its sign"],
  ["?", "this help; Escape closes it"],
];

function drawHelp() {
  byId("help").replaceChildren(
    make("h2", { id: "help-title" }, "Keys"),
    make("dl", {}, HELP.map(([keys, text]) => [make("dt", {}, keys), make("dd", {}, text)])),
    make("p", {}, "Orange is above 0 and blue below; the sign is in every number too. A heavy frame is the selected cell; a frame with ",
      "a dot is a number that it was made from."),
    make("p", {}, "For a finite difference forward runs again, with this one value moved by up to 0.0004 at the moment its line has made ",
      "it. “Apart” is how far that is from the number of backward: rounding leaves some 1e-12, and at ReLU’s kink it is no slope."),
    make("button", { click: () => byId("help").close() }, "Close"));
}
