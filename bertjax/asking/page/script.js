// Asks /ask and shows each model's answer in the text. Pasted text only ever becomes text nodes, never HTML.

const find = (id) => document.getElementById(id);
const form = find("form"), text = find("text"), question = find("question"), button = find("ask");
const number = new Intl.NumberFormat("en");
let about = null;
let busy = false;

// The server counts code points, strings here count UTF-16 units: two for a character beyond U+FFFF.
function unitsOf(string, codePoints) {
  let units = 0;
  for (let point = 0; point < codePoints; point++) units += string.codePointAt(units) > 0xffff ? 2 : 1;
  return units;
}

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer; is serve/ask.py still running?");
  }
  const content = await response.json().catch(() => ({ error: `The server answered ${response.status}.` }));
  if (!response.ok) throw new Error(content.error);
  return content;
}

function showError(message) {
  find("error").textContent = message;
  find("error").hidden = !message;
}

// The text in `element`, with its units from `start` to `end` inside a <mark>, which is returned.
function fillMarked(element, string, start, end) {
  const mark = document.createElement("mark");
  mark.textContent = string.slice(start, end);
  element.replaceChildren(string.slice(0, start), mark, string.slice(end));
  return mark;
}

function macs(model) {
  const [size, letter] = model.macs >= 1e9 ? [1e9, "G"] : [1e6, "M"];
  return `${(model.macs / size).toFixed(1)} ${letter} multiply-accumulates for ${model.max_seq} tokens`;
}

function makeCard(model) {
  const card = find("reply").content.cloneNode(true).firstElementChild;
  const part = (name) => card.querySelector(`.${name}`);
  card.dataset.model = model.name;
  part("role").textContent = model.role;
  part("name").textContent = model.name === model.role ? "" : model.name;
  part("description").textContent = `${model.description}\n${macs(model)}`;
  part("text").setAttribute("aria-label", `The text, with the ${model.role}'s answer marked`);
  return card;
}

function showReply(card, reply, string) {
  const part = (name) => card.querySelector(`.${name}`);
  const found = reply.start !== null;
  card.classList.add("filled");
  part("answer").textContent = found ? reply.answer : "No answer in this text";
  part("answer").classList.toggle("none", !found);
  part("score").textContent = found ? `${(100 * reply.score).toFixed(1)} %` : "–";
  part("meter").value = reply.score;
  part("time").textContent = `${(reply.tokenize_ms + reply.infer_ms).toFixed(1)} ms`;
  const windows = reply.windows === 1 ? "1 window" : `${number.format(reply.windows)} windows`;
  part("parts").textContent =
    `${reply.tokenize_ms.toFixed(1)} ms tokenization + ${reply.infer_ms.toFixed(1)} ms inference, ${windows}` +
    (reply.non_finite ? `; NaN or infinite logits in ${reply.non_finite}: this model is not sound` : "");
  const box = part("text");
  if (!found) {
    box.textContent = string;
    return;
  }
  const mark = fillMarked(box, string, unitsOf(string, reply.start), unitsOf(string, reply.end));
  box.scrollTop = mark.offsetTop - (box.clientHeight - mark.offsetHeight) / 2;
}

async function ask() {
  if (busy || !about) return;
  const asked = { text: text.value, question: question.value };
  const tooLong = [...asked.text].length > about.max_text;
  busy = true;
  button.setAttribute("aria-disabled", "true");
  find("replies").setAttribute("aria-busy", "true");
  showError("");
  try {
    if (!asked.text.trim()) throw new Error("The text is empty: paste one.");
    if (!asked.question.trim()) throw new Error("The question is empty: type one.");
    if (tooLong) throw new Error(`The text is too long: at most ${number.format(about.max_text)} characters.`);
    const { replies } = await request("/ask", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(asked),
    });
    const cards = find("replies").children;
    replies.forEach((reply, index) => showReply(cards[index], reply, asked.text));
    find("note").hidden = false;
  } catch (error) {
    for (const card of find("replies").children) card.classList.remove("filled"); // they answer another question
    showError(error.message);
  } finally {
    busy = false;
    button.removeAttribute("aria-disabled");
    find("replies").removeAttribute("aria-busy");
  }
}

function showCount() {
  find("count").textContent = `${number.format([...text.value].length)} characters`;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
text.addEventListener("input", showCount);
text.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask();
});

try {
  about = await request("/about");
  find("replies").replaceChildren(...about.models.map(makeCard));
  if (!text.value) text.value = about.text;
  if (!question.value) question.value = about.question;
  showCount();
  question.focus();
  question.select();
} catch (error) {
  showError(error.message);
}
