// The before/after slider: a native range input for keys and screen readers, pointers anywhere on the picture.

// stage: the element that holds the pictures; input: its range input, 0 to 100. Returns a function that sets the split.
export function slider(stage, input) {
  const show = () => {
    stage.style.setProperty("--split", `${input.value}%`);
    input.setAttribute("aria-valuetext", `${input.value} % before`);
  };
  const set = (value) => {
    input.value = value;
    show();
  };
  const follow = (event) => {
    const { left, width } = stage.getBoundingClientRect();
    set((100 * (event.clientX - left)) / width);
  };

  input.addEventListener("input", show);
  stage.addEventListener("pointerdown", (event) => {
    if (event.button || event.target.closest("button")) return;
    event.preventDefault(); // no selection, no dragging of the picture
    input.focus({ preventScroll: true });
    stage.setPointerCapture(event.pointerId);
    stage.classList.add("dragging");
    follow(event);
  });
  stage.addEventListener("pointermove", (event) => {
    if (stage.hasPointerCapture(event.pointerId)) follow(event);
  });
  for (const end of ["lostpointercapture", "pointercancel"]) {
    stage.addEventListener(end, () => stage.classList.remove("dragging"));
  }
  show();
  return set;
}
