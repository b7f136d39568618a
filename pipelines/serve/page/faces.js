// Each face: its box in the picture, and in the list its look before and after, its identity score, whether it is chosen.

const DOUBTFUL = 0.9; // two different people reach this similarity
const THUMB = 72; // pixels of a side

// Show `faces` ([{box, identity, chosen}]) of two pictures (HTMLImageElement; `before` null where it can't be shown).
// list, boxes: elements to fill. onchoice is told (index, chosen).
export function showFaces(faces, before, after, list, boxes, onchoice) {
  const rows = faces.map((face, i) => row(face, i, before, after));
  const frames = faces.map((face, i) => frame(face, i, after));
  rows.forEach((item, i) => {
    const check = item.querySelector("input");
    const choose = () => {
      frames[i].classList.toggle("left-out", !check.checked);
      onchoice(i, check.checked);
    };
    check.addEventListener("change", choose);
    frames[i].querySelector("button").addEventListener("click", () => check.click());
    for (const [event, on] of [["pointerenter", true], ["pointerleave", false], ["focusin", true], ["focusout", false]]) {
      item.addEventListener(event, () => frames[i].classList.toggle("marked", on));
    }
  });
  list.replaceChildren(...rows);
  boxes.replaceChildren(...frames);
}

function row(face, i, before, after) {
  const check = element("input", { type: "checkbox", checked: face.chosen });
  const words = element("span", { className: "words" }, `Face ${i + 1}`, element("span", score(face.identity)));
  return element("li", {}, element("label", {}, check, thumbs(face.box, before, after), words));
}

function score(identity) {
  if (identity === null) return { className: "soft", textContent: "identity not measured" };
  const doubtful = identity < DOUBTFUL;
  const textContent = `identity ${identity.toFixed(2)}${doubtful ? ": compare it closely" : ""}`;
  return { className: doubtful ? "doubtful" : "soft", textContent };
}

// The face cut out of both pictures, beside each other.
function thumbs(box, before, after) {
  const [left, top, right, bottom] = box;
  const pictures = before ? [before, after] : [after];
  const scale = Math.max(1, Math.round(devicePixelRatio));
  const canvas = element("canvas", { width: pictures.length * THUMB * scale, height: THUMB * scale });
  canvas.setAttribute("aria-hidden", "true");
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  pictures.forEach((picture, k) => {
    const area = [left, top, right - left, bottom - top];
    context.drawImage(picture, ...area, k * THUMB * scale, 0, THUMB * scale, THUMB * scale);
  });
  return canvas;
}

// A box in per cent of the picture, with the face's number as a button for the mouse; keys have the list.
function frame({ box, chosen }, i, picture) {
  const [left, top, right, bottom] = box;
  const { naturalWidth: width, naturalHeight: height } = picture;
  const number = element("button", { type: "button", tabIndex: -1, textContent: i + 1, title: "Take or leave this face" });
  const made = element("div", { className: "box" }, number);
  made.classList.toggle("left-out", !chosen);
  made.classList.toggle("high", top < 0.1 * height); // no room for the number above it
  const place = { left: left / width, top: top / height, width: (right - left) / width, height: (bottom - top) / height };
  for (const [name, part] of Object.entries(place)) made.style[name] = `${100 * part}%`;
  return made;
}

function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}
