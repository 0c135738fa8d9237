// Predict first: the selected number is blank until the reader has said its sign. Answers are kept while the page is open.

const predict = { on: false, answers: new Map() };
const ANSWERS = [[-1, "negative"], [0, "zero"], [1, "positive"]];

function isHidden(place) {
  return predict.on && !predict.answers.has(addressOf(place));
}

function askSign(place) {
  const buttons = ANSWERS.map(([sign, word]) => make("button", { "data-sign": sign, "click": () => answer(place, sign) }, word));
  return make("div", { class: "ask", "role": "group", "aria-labelledby": "ask" },
    make("p", { id: "ask" }, "What do you expect this number to be?"), buttons, score());
}

function answer(place, sign) {
  predict.answers.set(addressOf(place), sign);
  render();
  say(`${sign === trueSign(place) ? "Right." : "Not so."} ${cellSentence(place)}`);
}

function trueSign(place) {
  return Math.sign(valueAt(place));
}

function answered(place) {
  const sign = predict.answers.get(addressOf(place));
  if (!predict.on || sign === undefined) return null;
  const right = sign === trueSign(place);
  const word = new Map(ANSWERS).get(sign);
  return make("div", { class: "ask" },
    make("p", { class: right ? "right" : "wrong" }, right ? `Right: ${word}.` : `You said ${word}; it is ${signOf(valueAt(place))}.`,
      " The reason is in the numbers below."), score());
}

function score() {
  const all = [...predict.answers];
  const right = all.filter(([address, sign]) => trueSign(placeOf(address, at)) === sign).length;
  return all.length ? make("p", { class: "score" }, `${right} of ${all.length} right so far.`) : null;
}
